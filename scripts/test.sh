#!/usr/bin/env bash
# Builds everything that this machine can build and runs every test that it can run; installs what is missing for that.
# The last lines say what was run, and what could not be run and why. Fails when anything fails.
#
# With --pypi-python the Python tests of the library also run with the newest PyTorch and Megatron-core, from PyPI: 5 GB
# under build/. With --fuzz libFuzzer runs over the parsers, where Clang is found; their corpora are always replayed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

with_pypi_python=no
with_fuzz=no
for argument in "$@"; do
  case $argument in
    --pypi-python) with_pypi_python=yes ;;
    --fuzz) with_fuzz=yes ;;
    *) fail "found $argument, expected --pypi-python, --fuzz or nothing" ;;
  esac
done

ran=()
not_run=()
now="getting ready"
summary() {
  local status=$? line
  echo
  for line in "${ran[@]+"${ran[@]}"}"; do echo "passed: $line"; done
  for line in "${not_run[@]+"${not_run[@]}"}"; do echo "not run: $line"; done
  if [ $status -ne 0 ]; then echo "FAILED: $now"; fi
}
trap summary EXIT

# begin TEXT, then passed: what is named in the summary as passed, or as what failed.
begin() {
  now=$1
  echo
  echo "=== $now"
}
passed() { ran+=("$now"); }

configure() {  # PRESET [cmake options]
  local launcher=()
  if command -v ccache > /dev/null; then
    launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
    if [ "$1" = cuda ]; then launcher+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache); fi
  fi
  # GCC's warnings are no errors under sanitizers, whose code makes it see what is not there.
  local strict=ON
  if [[ $1 = *san || $1 = fuzz ]]; then strict=OFF; fi
  cmake --preset "$@" -G Ninja -DCPNSA_WARNINGS_AS_ERRORS=$strict "${launcher[@]}" > "build/$1.configure.log" 2>&1
}
build() {  # PRESET [targets]
  local preset=$1
  shift
  cmake --build --preset "$preset" --parallel "$cores" ${1:+--target "$@"}
}
launch_with=()  # what tests are started with
run_tests() {  # PRESET [ctest options]
  local reason
  "${launch_with[@]}" ctest --preset "$@" --output-on-failure --no-tests=error --timeout 600 --parallel $((cores + 1))
  # Python tests that found missing what they need say so in lines of pytest's.
  while read -r reason; do not_run+=("$reason"); done < <(
    sed -nE 's/^SKIPPED \[[0-9]+\] (.*\/)?(test_[^:]*):[0-9]+: (.*)/\2: \3/p' \
      "build/$1/Testing/Temporary/LastTest.log" | sort -u
    sed -nE 's/^docs\.sh: (.*)/scripts\/docs.sh: \1/p' "build/$1/Testing/Temporary/LastTest.log" |
      grep -v 'index.html$')
}

install_missing "${packages[@]}"
provide_cmake
mkdir -p build
python_options=()
if provide_python; then
  python_options=(-DCPNSA_PYTHON=ON "-DPython_EXECUTABLE=$python")
else
  not_run+=("Python package: found no nanobind and scikit-build-core to build it with")
fi

begin "layout, spelling, versions (scripts/lint.sh)"
status=0
scripts/lint.sh || status=$?
case $status in
  0) passed ;;
  77) not_run+=("scripts/lint.sh: PyPI did not provide its tools") ;;
  *) exit 1 ;;
esac

# Where there is a CUDA compiler, its build is the CPU's and more.
preset=cpu
if ! find_nvcc > /dev/null; then
  not_run+=("CUDA build: found no nvcc")
elif install_missing "${emulation_packages[@]}" && configure cuda "${python_options[@]}"; then
  preset=cuda
else
  why=$(grep -m1 -A1 'CMake Error' build/cuda.configure.log | tr -s '\n ' ' ' || true)
  not_run+=("CUDA build: the preset cuda does not configure here: $why")
fi

if [ $preset = cuda ]; then
  begin "CPU, threads, MPI, CUDA and NCCL (preset cuda): build, no register spills"
  build cuda 2>&1 | tee -a build/cuda/build.log | { grep -vE '^ptxas|bytes stack frame' || true; }
  scripts/check_spills.sh build/cuda/build.log
  passed
else
  begin "CPU, threads and MPI (preset cpu): build"
  configure cpu "${python_options[@]}" || { cat build/cpu.configure.log; exit 1; }
  build cpu
  passed
fi

begin "CPU, threads, MPI and Python: all tests"
run_tests $preset --label-exclude gpu
passed

# One file of the Python tests, by the environment's Python; a file that skips itself whole has pytest's status 5.
run_modern_python() {
  local status=0
  PYTHONPATH=build/$1/python PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 timeout 900 "$2" -m pytest -q -rs \
    -p no:cacheprovider "$3" || status=$?
  [ $status -eq 0 ] || [ $status -eq 5 ]
}
export -f run_modern_python
if [ $with_pypi_python = no ]; then
  not_run+=("Python tests with PyPI's PyTorch and Megatron-core: they take --pypi-python")
elif [ ${#python_options[@]} -eq 0 ] || ! provide_modern_python; then
  not_run+=("Python tests with PyPI's PyTorch and Megatron-core: PyPI did not provide them")
else
  begin "Python tests with PyPI's PyTorch and Megatron-core (tests/python/requirements-modern.txt)"
  of_examples='test_(examples|generate|language_model|looks|quality|retrieval_tasks)'  # have run with Debian's packages
  printf '%s\n' tests/python/test_*.py | grep -vE "$of_examples" |
    xargs -P "$cores" -I FILE bash -c 'run_modern_python "$@"' _ $preset "$modern_python" FILE
  passed
fi

if [ $with_fuzz = no ]; then
  not_run+=("libFuzzer over the parsers: it takes --fuzz")
elif ! command -v clang++ > /dev/null; then
  not_run+=("libFuzzer over the parsers (preset fuzz): found no clang++")
else
  begin "libFuzzer over the parsers, under AddressSanitizer and UBSan (preset fuzz)"
  configure fuzz || { cat build/fuzz.configure.log; exit 1; }
  build fuzz fuzz_targets
  run_tests fuzz --label-regex fuzz
  passed
fi

begin "AddressSanitizer and UBSan (preset cpu-asan): all tests in one process"
configure cpu-asan || { cat build/cpu-asan.configure.log; exit 1; }
build cpu-asan
# Memory's bounds are those of the given shapes; a layer's errors over callbacks are the layer's and those of the
# communicators' suite.
CPNSA_TEST_SEEDS=1-1 UBSAN_OPTIONS=print_stacktrace=1 run_tests cpu-asan --label-exclude 'package|gpu|docs' \
  --exclude-regex 'Attention/.*/cpu_callbacks'
passed

begin "ThreadSanitizer (preset cpu-tsan): labels planning and conformance"
configure cpu-tsan || { cat build/cpu-tsan.configure.log; exit 1; }
build cpu-tsan planning_tests conformance_tests
# ThreadSanitizer of GCC 12 cannot live with as much address randomisation as newer kernels have.
if setarch --addr-no-randomize true 2> /dev/null; then launch_with=(setarch --addr-no-randomize); fi
# Races do not hide in more shapes, numbers or choices.
CPNSA_TEST_SEEDS=1-1 run_tests cpu-tsan --label-regex 'planning|conformance' \
  --exclude-regex 'callbacks_over_threads|Attention/.*/cpu_callbacks|CornerCases.(EveryShape|NanGoes)|Memory.Choices'
launch_with=()
passed

if [ $preset = cuda ] && has_gpu; then
  begin "CUDA: label gpu"
  run_tests cuda --label-regex gpu
  passed
fi
has_gpu || not_run+=("GPU tests: found no GPU")
