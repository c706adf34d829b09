#!/usr/bin/env python3
"""Fetches real text, documentation and source code, from packages of Debian or Ubuntu, by name.

    python3 fetch_text.py --out text                     # all packages of the table: several hundred MB of text
    python3 fetch_text.py --out text --megabytes 200     # packages in the table's order until there are 200 MB

The packages are downloaded with apt-get and unpacked with dpkg-deb; nothing is installed. text/PACKAGE/... has the
files; text/sources.json has each package's version, licence and copyright file. `apt-get update` must have run.
"""

import argparse
import gzip
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

#: (package's name as a regular expression, of which the newest match is taken; licence; files, as regular expressions
#: of their paths). RFCs are in Debian's section non-free, which a system may not have.
PACKAGES = [
    (r"linux-doc-[0-9.]+", "GPL-2 (kernel documentation)", r"/Documentation/.*\.(rst|txt|yaml)(\.gz)?$"),
    (r"python3\.[0-9]+-doc", "PSF-2", r"/_sources/.*\.rst\.txt(\.gz)?$"),
    (r"postgresql-doc-[0-9]+", "PostgreSQL", r"/html/.*\.html$"),
    (r"git-doc", "GPL-2", r"\.txt(\.gz)?$"),
    (r"perl-doc", "Artistic or GPL-1+", r"\.pod(\.gz)?$"),
    (r"doc-rfc-std", "IETF Trust (section non-free)", r"\.txt(\.gz)?$"),
    (r"doc-rfc-informational", "IETF Trust (section non-free)", r"\.txt(\.gz)?$"),
    (r"golang-1\.[0-9]+-src", "BSD-3-clause", r"\.go$"),
    (r"rust-src", "MIT or Apache-2.0", r"\.(rs|md)$"),
    (r"openjdk-17-source", "GPL-2 with Classpath exception", r"\.java$"),
    (r"linux-source-[0-9.]+", "GPL-2", r"/(kernel|mm|fs|lib|net|block|crypto|security|init|ipc)/.*\.[ch]$"),
]
BLOCKS = set("p div li ul ol dl dt dd h1 h2 h3 h4 h5 h6 pre table tr section br blockquote".split())
SKIPPED = {"script", "style", "nav", "head"}


class _Text(html.parser.HTMLParser):
    """The text of a page: a line per block, without scripts and navigation."""

    def __init__(self):
        super().__init__()
        self.parts, self._skip, self._pre = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self._skip += tag in SKIPPED
        self._pre += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self._skip -= tag in SKIPPED
        self._pre -= tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if self._skip <= 0:
            self.parts.append(data if self._pre > 0 else re.sub(r"\s+", " ", data))


def text_of_html(page):
    parser = _Text()
    parser.feed(page)
    lines = [line.rstrip() for line in "".join(parser.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def run(*command, **keywords):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)


def newest(pattern):
    """The package whose name matches, by the numbers in it; None if there is none."""
    found = run("apt-cache", "pkgnames", re.split(r"[\[\\(.]", pattern)[0]).stdout.split()
    numbers = lambda name: [int(number) for number in re.findall(r"\d+", name)]
    for name in sorted(filter(re.compile(pattern).fullmatch, found), key=numbers, reverse=True):
        policy = run("apt-cache", "policy", name).stdout
        if re.search(r"Candidate: (?!\(none\))\S", policy):  # not only the name of what is no longer there
            return name
    return None


def open_archives(folder):
    """Unpacks the archives in which some packages ship their sources."""
    for path in sorted(folder.rglob("src.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(""))
    for path in sorted(folder.rglob("linux-source-*.tar.xz")):
        run("tar", "--no-same-owner", "-xf", str(path), "-C", str(path.parent))


def take(package, pattern, out):
    """Downloads a package and copies its matching files as text; returns its entry of sources.json."""
    matches, size, count = re.compile(pattern), 0, 0
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        os.chmod(work, 0o755)  # apt's own user downloads
        run("apt-get", "download", "-q", package, cwd=work)
        [archive] = pathlib.Path(work).glob("*.deb")
        version = run("dpkg-deb", "--field", str(archive), "Version").stdout.strip()
        unpacked = pathlib.Path(work) / "unpacked"
        run("dpkg-deb", "--extract", str(archive), str(unpacked))
        open_archives(unpacked)
        for path in sorted(unpacked.rglob("*")):
            if path.is_symlink() or not path.is_file() or not matches.search(str(path)):
                continue
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                continue
            relative = path.relative_to(unpacked)
            relative = relative.with_suffix("") if path.suffix == ".gz" else relative
            if relative.suffix == ".html":
                text, relative = text_of_html(text), relative.with_suffix(".txt")
            target = out / package / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            size, count = size + len(text.encode()), count + 1
        copyrights = [path for path in unpacked.glob("usr/share/doc/*/copyright") if path.is_file()]
        return {"package": package, "version": version, "files": count, "bytes": size,
                "copyright": "\n".join(path.read_text(errors="replace") for path in copyrights)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to make")
    parser.add_argument("--megabytes", type=float, default=0, help="stop when there is as much text; default: take all")
    parser.add_argument("--only", help="take the packages whose names contain this")
    arguments = parser.parse_args()
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            sys.exit(f"fetch_text.py: error: found no {tool}, expected Debian or Ubuntu")
    if arguments.out.exists():
        sys.exit(f"fetch_text.py: error: found {arguments.out}, expected a folder that does not exist yet")
    partial = arguments.out.with_name(arguments.out.name + ".partial")  # --out appears whole or not at all
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    sources = []
    for pattern, licence, files in PACKAGES:
        if arguments.megabytes and sum(source["bytes"] for source in sources) >= arguments.megabytes * 1e6:
            break
        if arguments.only and arguments.only not in pattern:
            continue
        package = newest(pattern)
        if package is None:
            print(f"{pattern}: this system's package lists do not have it; left out")
            continue
        try:
            source = {"licence": licence, **take(package, files, partial)}
        except subprocess.CalledProcessError as error:
            sys.exit(f"fetch_text.py: error: {package}: {' '.join(error.cmd)} failed: {error.stderr.strip()}")
        sources.append(source)
        print(f"{package} {source['version']} ({licence}): {source['files']} files, {source['bytes'] / 1e6:.1f} MB",
              flush=True)
    total = sum(source["bytes"] for source in sources)
    print(f"{total / 1e6:.1f} MB of text")
    if not total or total < arguments.megabytes * 1e6:
        sys.exit(f"fetch_text.py: error: found {total / 1e6:.1f} MB of text, expected {arguments.megabytes:g}; "
                 "has `apt-get update` run?")
    (partial / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    partial.rename(arguments.out)


if __name__ == "__main__":
    main()
