#!/usr/bin/env bash
# Builds the documentation's site, build/docs/html, from docs/, the READMEs and the public headers; every warning is an
# error. scripts/docs.sh [FOLDER]: where the built Python package is, for its reference; by default that of the first
# build that has one. Doxygen comes from Debian, Sphinx from PyPI into build/docs-environment. Exit status 77 says that
# one of them could not be had.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

unavailable() {
  echo "docs.sh: $*" >&2
  exit 77
}
mkdir -p build/docs
if ! command -v doxygen > /dev/null; then
  (install_missing doxygen) || true
  command -v doxygen > /dev/null || unavailable "found no doxygen"
fi
environment=$PWD/build/docs-environment
if ! cmp --silent scripts/docs_requirements.txt "$environment/requirements.txt"; then
  interpreter=python3
  if [ -x /usr/bin/python3 ]; then interpreter=/usr/bin/python3; fi  # which has the system's NumPy and PyTorch
  { "$interpreter" -m venv --clear --system-site-packages "$environment" &&
    "$environment/bin/pip" --quiet install -r scripts/docs_requirements.txt; } ||
    unavailable "PyPI did not provide the packages of scripts/docs_requirements.txt"
  cp scripts/docs_requirements.txt "$environment/requirements.txt"
fi

{ cat docs/site/Doxyfile && echo "OUTPUT_DIRECTORY = build/docs"; } | doxygen -

# The package's reference needs the built extension; a framework that is missing is mocked.
python_path=${1-}
if [ -z "$python_path" ]; then
  for built in build/*/python/cpnsa/_core.*; do
    if [ -f "$built" ]; then python_path=$PWD/${built%/cpnsa/*}; fi
  done
fi
if ! PYTHONPATH=$python_path "$environment/bin/python" -c 'import cpnsa' 2> /dev/null; then
  echo "docs.sh: going on without the Python reference: found no built package${python_path:+ in $python_path}"
  python_path=
fi
mock=()
for module in numpy torch; do
  "$environment/bin/python" -c "import $module" 2> /dev/null || mock+=("$module")
done

CPNSA_DOXYGEN_XML=$PWD/build/docs/xml CPNSA_PYTHON_PATH=$python_path CPNSA_MOCK="${mock[*]}" PYTHONDONTWRITEBYTECODE=1 \
  "$environment/bin/python" -m sphinx -W --keep-going -q -b html -c docs/site -d build/docs/doctrees . build/docs/html
echo "docs.sh: build/docs/html/index.html"
