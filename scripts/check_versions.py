#!/usr/bin/env python3
"""Compares the places that state cpnsa's version with CMakeLists.txt, and the linters' versions of
.pre-commit-config.yaml with scripts/lint_requirements.txt."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Each pattern's group is the version.
PLACES = {
    "CMakeLists.txt": r"^project\(\s*cpnsa VERSION (\S+)",
    "python/cpnsa/version.py": r'^__version__ = "(.*)"$',
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## \[(\d[^]]*)\]",  # the first heading of a version
}


def first(path, pattern):
    match = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return match.group(1) if match else None


def main():
    problems = []
    versions = {path: first(path, pattern) for path, pattern in PLACES.items()}
    expected = versions["CMakeLists.txt"]
    for path, version in versions.items():
        if version is None or version != expected:
            problems.append(f"{path}: found version {version}, expected {expected}, that of CMakeLists.txt")
    if "version" not in (first("python/pyproject.toml", r"^dynamic = \[(.*)\]$") or ""):
        problems.append('python/pyproject.toml: expected dynamic = ["version"], which reads cpnsa/version.py')

    requirements = (ROOT / "scripts/lint_requirements.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^(\S+==\S+)$", requirements, re.MULTILINE)
    hooks = re.findall(r"additional_dependencies: \[(\S+==[^\]]+)\]",
                       (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    if sorted(pins) != sorted(set(hooks)):
        problems.append(f".pre-commit-config.yaml: found {sorted(set(hooks))}, expected {sorted(pins)}, "
                        "those of scripts/lint_requirements.txt")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
