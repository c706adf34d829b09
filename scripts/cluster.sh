#!/usr/bin/env bash
# On a machine with several GPUs: builds, then checks and measures everything on 1, 2, 4 ... of them within ten minutes,
# unattended. One table on standard output; results.json, report.md and scaling.svg in the folder --out (default
# build/cluster-<date>). Flags are bench/cluster.py's (--help). Without a GPU: scripts/cluster.sh --device cpu, at sizes
# that mean nothing. Several nodes: scripts/cluster.sbatch.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

# Values of --build, --out and --device where they were given.
folder="" out="" device=cuda
arguments=("$@")
for ((i = 0; i < $#; ++i)); do
  case ${arguments[i]} in
    --build) folder=${arguments[i + 1]:-} ;;
    --build=*) folder=${arguments[i]#*=} ;;
    --out) out=${arguments[i + 1]:-} ;;
    --out=*) out=${arguments[i]#*=} ;;
    --device) device=${arguments[i + 1]:-} ;;
    --device=*) device=${arguments[i]#*=} ;;
    -h | --help) exec python3 -B bench/cluster.py --help ;;
  esac
done

if [ -z "$folder" ]; then
  preset=$([ "$device" = cpu ] && echo cpu || echo cuda)
  if [ "$preset" = cuda ]; then find_nvcc > /dev/null || fail "found no nvcc, expected one (or --device cpu)"; fi
  cmake --preset "$preset" -G Ninja > /dev/null
  echo "Building (preset $preset)" >&2
  cmake --build --preset "$preset" --parallel "$cores" > "build/cluster.build.log" ||
    fail "the build failed, see build/cluster.build.log"
  arguments+=(--build "build/$preset")
fi
if [ -z "$out" ]; then arguments+=(--out "build/cluster-$(date +%Y%m%d-%H%M%S)"); fi

# NVLink, and no multicast: another job's settings may be left on a shared machine.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
exec python3 -B bench/cluster.py "${arguments[@]}"
