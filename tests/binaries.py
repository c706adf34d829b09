#!/usr/bin/env python3
"""Reads the dynamic section of every executable and shared library of a build: binaries.py READELF LIST, a file with a
path on each line. No run path has an empty or relative entry, for which the loader would search the current folder;
everything is hardened; Python's modules export their initialisation alone."""

import re
import subprocess
import sys
from pathlib import Path


def problems_of(readelf, file):
    command = [readelf, "--wide", "--file-header", "--dynamic", "--program-headers", "--dyn-syms", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for entry in (entry for path in re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", text) for entry in path.split(":")):
        if not entry.startswith(("/", "$ORIGIN")):
            yield f'run path: found the entry "{entry}", expected absolute ones or $ORIGIN'
    if not re.search(r"Type: +DYN", text):
        yield "found code at a fixed address, expected it position-independent"
    if "GNU_RELRO" not in text or not re.search(r"\((FLAGS|BIND_NOW)\).*BIND_NOW|\(FLAGS_1\).*NOW", text):
        yield "found no full RELRO, expected -z relro -z now"
    if "__stack_chk_fail" not in text:
        yield "found no use of __stack_chk_fail, expected -fstack-protector-strong"
    module = re.match(r"(_[a-z]+)\..*\.so$", file.name)
    if module:
        exported = re.findall(r"(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +(?!UND)\S+ (\S+)", text)
        if exported != [f"PyInit_{module.group(1)}"]:
            yield f"exports: found {len(exported)} symbols, {exported[:5]}, expected PyInit_{module.group(1)} alone"


def main(readelf, files):
    problems = [f"{file}: {problem}" for file in files for problem in problems_of(readelf, file)]
    if len(files) < 3:
        problems.append(f"found {len(files)} binaries, expected those of a build")
    print("\n".join(problems) or f"{len(files)} binaries are as they should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [Path(line) for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()]))
