#!/usr/bin/env python3
"""check_prose.py [FILE...]: words and phrases that the project does not use, with the word to use instead, and links of
Markdown files that lead nowhere. Without FILE: all files of the repository but tests and data."""

import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT = tuple(".md .hpp .cpp .h .c .cu .cuh .py .sh .cmake .txt .sbatch .in .yaml .yml".split())
# The tests check their own words; data, pictures and this list do not count.
SKIPPED = re.compile(r"^(tests/|build/|LICENSE$|scripts/check_prose\.py$)|\.(svg|json|npy)$")

COMMENT = r"(?:///?<?|/\*\*?|^\s*\*|#|\"\"\")\s*"  # the beginning of a comment
# (pattern, what to write instead)
RULES = [(re.compile(pattern), instead) for pattern, instead in [
    (r"(?i)\bcards?\b", "GPU or device"),
    (r"\b(?:most|least)_[a-z]\w*", "max_..., min_... or num_..._per_..."),
    (r"\b(?!(?:i|ha|a|wa|thi)s_)[a-z]+s_a_[a-z]\w*", "..._per_..."),
    (r"\bspeaks\b", "elect_one or is_leader"),
    (r"\bwgmma_(?:rn|nt)\b", "wgmma_rs, wgmma_ss"),
    (r"\b(?:take|give)_registers\b", "warpgroup_reg_alloc, warpgroup_reg_dealloc"),
    (r"\btensor_load\b", "tma_load"),
    (r"\bptx::(?:hold|operand|barrier_\w+)\b", "warpgroup_fence_operand, make_smem_desc, mbarrier_..."),
    (r"\bsoften\w*|\bseldom\b|_seldom\b", "online_softmax, lazy rescaling"),
    (r"\b(?:Idle|HostGather|KeptEvent)\b", "Backoff, HostStaging, CachedEvent"),
    (r"\b(?:[a-z]\w*_)?kept_[a-z]\w*|\b[a-z]\w*_kept\b", "cached_... or saved_..."),
    (r"(?i)\b(?:anew|likewise|whatever|whoever)\b", "say it plainly"),
    (COMMENT + r"(?:What|Of|Whether|Which) ", "a noun or a verb at the beginning"),
    (r"(?<![\w/])/(?:work|tmp/w)/", "no path of a machine"),
]]
# (path, text of the line): lines that may contain such a word.
ALLOWED = {
}


def allowed(path, line):
    return any(path == allowed_path and text in line for allowed_path, text in ALLOWED)


def problems_of_line(line, markdown):
    for pattern, instead in RULES:
        match = pattern.search(line)
        if match and not (line.startswith("#") and markdown and pattern.pattern.startswith(COMMENT)):
            yield f'found "{match.group(0).strip()}", expected {instead}'


def links_of(text):
    """(line number, target) of the relative links outside of code."""
    fenced = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not fenced:
            for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
                if not re.match(r"[a-z]+:|#", target):
                    yield number, target


def anchors_of(text):
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def problems_of_links(path, text):
    for number, target in links_of(text):
        file, _, anchor = target.partition("#")
        linked = os.path.normpath(os.path.join(os.path.dirname(path), file))
        if not os.path.exists(os.path.join(ROOT, linked)):
            yield number, f"found a link to {target}, expected one to a file that exists"
        elif anchor and linked.endswith(".md"):
            with open(os.path.join(ROOT, linked), encoding="utf-8") as opened:
                if anchor not in anchors_of(opened.read()):
                    yield number, f"found a link to {target}, expected one to a heading that exists"


def problems_of(path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if not allowed(path, line):
            for problem in problems_of_line(line, path.endswith(".md")):
                yield number, problem
    if path.endswith(".md"):
        yield from problems_of_links(path, text)


def files_of_repository():
    """Paths relative to ROOT: what git knows, or, where there is no git, all that is there."""
    listing = subprocess.run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
                             capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        return sorted(set(listing.stdout.splitlines()))
    return sorted(os.path.relpath(os.path.join(folder, name), ROOT)
                  for folder, _, names in os.walk(ROOT) for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE")
    arguments = parser.parse_args()
    paths = [os.path.relpath(os.path.abspath(path), ROOT) for path in arguments.files] or files_of_repository()
    paths = [path for path in paths if path.endswith(TEXT) and not SKIPPED.search(path)
             and os.path.isfile(os.path.join(ROOT, path))]
    found = 0
    for path in paths:
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            for number, problem in problems_of(path, file.read()):
                print(f"{path}:{number}: {problem}")
                found += 1
    if not arguments.files and len(paths) < 200:
        sys.exit(f"check_prose.py: error: found {len(paths)} files, expected those of the repository")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
