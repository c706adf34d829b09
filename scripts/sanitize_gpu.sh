#!/usr/bin/env bash
# compute-sanitizer over the GPU suites on small shapes: memory errors, races in shared memory, reads of what was never
# written. Takes a GPU. scripts/sanitize_gpu.sh [BUILD [TOOL ...]], default build/cuda memcheck racecheck initcheck;
# GTEST_FILTER chooses tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

build=${1:-build/cuda}
shift || true
tools=("$@")
if [ ${#tools[@]} -eq 0 ]; then tools=(memcheck racecheck initcheck); fi
find_nvcc > /dev/null || true
command -v compute-sanitizer > /dev/null || fail "found no compute-sanitizer, expected that of the CUDA toolkit"

# One seed of each random suite, and of the layer's suite what calls every kernel a few times.
export CPNSA_TEST_SEEDS=${CPNSA_TEST_SEEDS:-1-1}
layer_tests=${GTEST_FILTER:-*.TwoLayersTakeTurns/*:*.OptionalOutputsMayBeLeftOut/*}

failed=()
for tool in "${tools[@]}"; do
  check() {  # SUITE FILTER
    echo "=== $tool: $1"
    compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 1000 "$build/bin/$1" --gtest_brief=1 \
      --gtest_filter="$2" || failed+=("$tool of $1")
  }
  check kernels_cuda_test "${GTEST_FILTER:-*}"
  check attention_cuda_test "$layer_tests"
done
if [ ${#failed[@]} -gt 0 ]; then fail "not clean: ${failed[*]}"; fi
echo "clean: ${tools[*]}"
