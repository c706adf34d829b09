#!/usr/bin/env bash
# Makes the mistakes of tests/mutations one at a time and checks that the tests notice each; installs what that needs.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

install_missing "${packages[@]}"
provide_cmake
mkdir -p build
provide_python || fail "PyPI did not provide nanobind and scikit-build-core, which the mutations of Python need"
exec "$python" -B tests/mutations/mutate.py "$@"
