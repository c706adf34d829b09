#!/usr/bin/env python3
"""Holds docs/adding.md to the tree: adding.py ROOT. A section names an example that exists and lists the files that
spell it; this finds the files that do. The two must be the same, and no more than the section allows."""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

PAGE = "docs/adding.md"
# Where an addition is written. Tests that only use what there is do not count, nor do pages of measurements.
SEARCHED = ("README.md", "CMakeLists.txt", "cmake", "include", "src", "comm", "kernels", "backends", "c", "tools",
            "python", "docs", "tests")
SKIPPED = ("docs/adding.md", "docs/performance*", "docs/kernels/*", "tests/golden/cases/*", "tests/emulation/*",
           "tests/examples/*", "tests/planning/*", "tests/conformance/*", "tests/tools/*", "tests/package/*",
           "tests/faults/*", "*_test.cpp", "*/test_*", "*_ranks.py", "*.svg", "*.json", "*.pyc")
KEPT = ("tests/kernels/forward_test.cpp", "tests/kernels/backward_test.cpp", "tests/kernels/moves_test.cpp")
SECTION = re.compile(r"^## (?P<title>.+?)$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^Example: `(?P<word>[^`]+)`(?P<places>(?:,(?: in)?\s`[^`]+`)*)\."
                     r"(?:\sAt most (?P<limit>\d+) files\.)?$", re.MULTILINE)
ITEM = re.compile(r"^\d+\. ((?:`[^`]+`(?:, )?)+)", re.MULTILINE)


def searched_files(root):
    for top in SEARCHED:
        paths = [root / top] if (root / top).is_file() else sorted((root / top).rglob("*"))
        for path in paths:
            name = path.relative_to(root).as_posix()
            if path.is_file() and (name in KEPT or not any(fnmatch(name, pattern) for pattern in SKIPPED)):
                yield name, path


def check(title, body, texts, problems):
    example = EXAMPLE.search(body)
    if not example:
        problems.append(f"{title}: found no line \"Example: `word`.\", expected one")
        return
    pattern = re.compile(rf"\b(?:{example['word']})\b", re.IGNORECASE)
    found = {name for name, text in texts.items() if pattern.search(text) or pattern.search(name)}
    places = re.findall(r"`([^`]+)`", example["places"])
    if places:
        found = {name for name in found if any(fnmatch(name, place) for place in places)}
    listed = [pattern for item in ITEM.findall(body) for pattern in re.findall(r"`([^`]+)`", item)]
    for pattern in listed:
        if not any(fnmatch(name, pattern) for name in found):
            problems.append(f"{title}: found no {example['word']} in {pattern}, expected one: the page lists it")
    for name in sorted(found):
        if not any(fnmatch(name, pattern) for pattern in listed):
            problems.append(f"{title}: found {example['word']} in {name}, expected the page to list it")
    if not found:
        problems.append(f"{title}: found {example['word']} nowhere, expected an example that exists")
    if example["limit"] and len(found) > int(example["limit"]):
        problems.append(f"{title}: found {len(found)} files, expected at most {example['limit']}")
    print(f"{title}: {len(found)} files spell {example['word']}")


def main(root):
    texts = {name: path.read_text(encoding="utf-8", errors="ignore") for name, path in searched_files(root)}
    page = (root / PAGE).read_text(encoding="utf-8")
    sections = [(match["title"], match["body"]) for match in SECTION.finditer(page)]
    problems = []
    for title, body in sections:
        check(title, body, texts, problems)
    if len(sections) < 9:
        problems.append(f"{PAGE}: found {len(sections)} sections, expected 9 at least")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
