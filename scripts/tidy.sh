#!/usr/bin/env bash
# clang-tidy, with the checks of .clang-tidy, over the library's own C++: scripts/tidy.sh [BUILD [FILE ...]], default
# build/cpu and every file of src, comm, kernels/cpu, backends, c and tools that BUILD compiles. Takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

build=${1:-build/cpu}
shift || true
command -v clang-tidy > /dev/null || install_missing clang-tidy
[ -f "$build/compile_commands.json" ] || fail "found no $build/compile_commands.json, expected a configured build"

files=("$@")
if [ ${#files[@]} -eq 0 ]; then
  mapfile -t files < <(sed -nE "s|^ *\"file\": \"$PWD/((src\|comm\|kernels/cpu\|backends\|c\|tools)/.*\.cpp)\".*|\1|p" \
    "$build/compile_commands.json" | sort -u)
fi
[ ${#files[@]} -gt 0 ] || fail "found no file to check in $build/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs --max-procs="$cores" --max-args=1 clang-tidy -p "$build" --quiet \
  --extra-arg=-Wno-unknown-warning-option
echo "tidy.sh: ${#files[@]} files are clean"
