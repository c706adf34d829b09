#!/usr/bin/env bash
# Trains a small language model on the text of the GPL, its sequence sharded over 4 ranks: installs what is missing,
# builds, runs for about a minute, and leaves a loss curve. Flags are passed on, e.g. scripts/demo.sh --attention full
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

install_missing "${packages[@]}"
provide_cmake

preset=cpu
if has_gpu && find_nvcc > /dev/null; then
  mkdir -p build
  if cmake --preset cuda -G Ninja > build/cuda.configure.log 2>&1; then
    preset=cuda
  else
    echo "There is a GPU, but the preset cuda does not configure (see build/cuda.configure.log); going on with the CPU."
  fi
fi
if [ "$preset" = cpu ]; then cmake --preset cpu -G Ninja > /dev/null; fi
echo "Building (preset $preset)"
cmake --build --preset "$preset" --target language_model --parallel "$cores"

out=build/demo
echo
mpirun -n 4 --bind-to none "build/$preset/bin/language_model" --out "$out" "$@"
echo
echo "The loss curve is in $out/loss.svg (a picture, for a browser) and $out/loss.csv, unless --out said otherwise."
