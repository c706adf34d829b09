#!/usr/bin/env bash
# Checks the layout and spelling of every file, in seconds: scripts/lint.sh. With --fix, formats what is not clean.
# The tools come from PyPI into build/lint-environment; exit status 77 says that PyPI did not provide them.
set -euo pipefail
cd "$(dirname "$0")/.."

format=(--dry-run -Werror)
ruff=(--output-format=concise --quiet)
gersemi=(--check)
if [ "${1-}" = --fix ]; then
  format=(-i)
  ruff+=(--fix)
  gersemi=(--in-place)
fi

tools=build/lint-environment
if ! cmp --silent scripts/lint_requirements.txt "$tools/requirements.txt"; then
  mkdir -p build
  if ! { python3 -m venv "$tools" && "$tools/bin/pip" --quiet install -r scripts/lint_requirements.txt; }; then
    echo "lint.sh: PyPI did not provide the tools of scripts/lint_requirements.txt" >&2
    exit 77
  fi
  cp scripts/lint_requirements.txt "$tools/requirements.txt"
fi
PATH="$PWD/$tools/bin:$PATH"

# Golden cases are data, and so are pictures.
files() { git ls-files --cached --others --exclude-standard --deduplicate -- "$@" | while read -r file; do
  if [ -f "$file" ]; then echo "$file"; fi
done; }
mapfile -t sources < <(files '*.cpp' '*.hpp' '*.h' '*.c' '*.cu' '*.cuh')
mapfile -t python < <(files '*.py')
mapfile -t cmake < <(files '*CMakeLists.txt' '*.cmake')
mapfile -t shell < <(files '*.sh' '*.sbatch' .ci/run)
mapfile -t text < <(files ':!*.npy' ':!*.svg' ':!*.json' ':!LICENSE' ':!tests/golden/cases/*' ':!tests/fuzz/corpus/*')

failed=()
check() {  # NAME command...
  local name=$1
  shift
  "$@" || failed+=("$name")
}
check clang-format clang-format "${format[@]}" "${sources[@]}"
check ruff ruff check "${ruff[@]}" "${python[@]}"
check gersemi gersemi --quiet "${gersemi[@]}" "${cmake[@]}"
check shellcheck shellcheck --external-sources "${shell[@]}"
check codespell codespell "${text[@]}"
check check_prose.py python3 scripts/check_prose.py "${text[@]}"
check check_text.py python3 scripts/check_text.py "${text[@]}"
check check_versions.py python3 scripts/check_versions.py

if [ ${#failed[@]} -gt 0 ]; then
  echo "lint.sh: not clean: ${failed[*]}; scripts/lint.sh --fix formats sources, CMake files and imports" >&2
  exit 1
fi
echo "lint.sh: ${#text[@]} files are clean"
