#!/usr/bin/env python3
"""check_text.py FILE...: lines of at most 120 columns, no tabs but in Makefiles, no blanks at the end of a line, one
newline at the end of a file. A Markdown line may be longer where it is a row of a table or a link alone,
and so may a command of sed."""

import re
import sys

COLUMNS = 120
LONG_MARKDOWN = re.compile(r"\s*\||\s*(?:[-*] )?!?(?:\[[^]]*\](?:\([^)]*\)|: \S+)|<?https?://\S+>?)[.,;:]?\s*$")


def problems(path):
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield len(text.split("\n")), "expected one newline at the end of the file"
    for number, line in enumerate(text.split("\n"), 1):
        long = len(line) > COLUMNS and not path.endswith(".sed")
        if long and not (path.endswith(".md") and LONG_MARKDOWN.match(line)):
            yield number, f"found {len(line)} columns, expected at most {COLUMNS}"
        if line != line.rstrip():
            yield number, "found blanks at the end of the line"
        if "\t" in line:
            yield number, "found a tab, expected spaces"


def main():
    found = 0
    for path in sys.argv[1:]:
        for number, problem in problems(path):
            print(f"{path}:{number}: {problem}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
