"""Runs the mutations of mutations.py: each must make its test fail.

    python3 tests/mutations/mutate.py --check              # that every mutation still applies; seconds
    python3 tests/mutations/mutate.py [FILTER] [-j 4]      # all, or those whose file or text contains FILTER

A copy of the tree under build/mutations has all mutations of C++ in it, switched on by the environment variable
CPNSA_MUTANT, so that one build serves all; those of Python are made one at a time in a copy of the package. Run by hand
and at night. Exit status 1 if a mutation does not apply or is not noticed.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

from mutations import mutations

root = pathlib.Path(__file__).resolve().parents[2]
work = root / "build" / "mutations"
cpp = work / "source" / "build" / "cpp"
header = """#pragma once

#include <cstdlib>

namespace cpnsa {
inline int mutant_number() {
  static const int number = std::getenv("CPNSA_MUTANT") ? std::atoi(std::getenv("CPNSA_MUTANT")) : -1;
  return number;
}
}  // namespace cpnsa
"""


def problems():
    """The mutations whose text is not in its file, or more than once."""
    found = []
    for number, mutation in enumerate(mutations):
        count = (root / mutation.file).read_text().count(mutation.old)
        if count != 1:
            found.append(f"{number}: {mutation.file}: found {mutation.old!r} {count} times, expected once")
    return found


def copy_tree(chosen):
    """The tree with the chosen mutations of C++; files that do not change keep their times for the build."""
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, check=True,
                           capture_output=True, text=True).stdout.splitlines()
    for file in files:
        if not (root / file).is_file():
            continue
        content = (root / file).read_bytes()
        of_file = [number for number in chosen if mutations[number].file == file]
        if of_file and not file.endswith(".py"):
            text = content.decode()
            for number in of_file:
                new = mutations[number].new.replace("MUTANT", f"(::cpnsa::mutant_number() == {number})")
                text = text.replace(mutations[number].old, new)
            include = '#include "tests/mutations/mutant_number.hpp"\n'
            text = text.replace("#pragma once\n", "#pragma once\n" + include, 1) if "#pragma once\n" in text \
                else include + text
            content = text.encode()
        target = work / "source" / file
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            shutil.copymode(root / file, target)
    (work / "source/tests/mutations/mutant_number.hpp").write_text(header)


def build(chosen, jobs):
    programs = sorted({mutations[number].test[0] for number in chosen if not mutations[number].file.endswith(".py")})
    python = any(mutations[number].file.endswith(".py") for number in chosen)
    # As the preset cpu, in a folder of its depth: ccache then has what is not mutated.
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    subprocess.run(["cmake", "--preset", "cpu", "-S", work / "source", "-B", cpp, "-G", "Ninja",
                    "-DCPNSA_WARNINGS_AS_ERRORS=ON", f"-DCPNSA_PYTHON={'ON' if python else 'OFF'}",
                    f"-DPython_EXECUTABLE={sys.executable}", *launcher], check=True, stdout=subprocess.DEVNULL)
    targets = programs + (["_core"] if python else [])
    subprocess.run(["cmake", "--build", cpp, "--parallel", str(jobs), "--target", *targets], check=True)


def run_cpp(number):
    """Whether the test passes with the mutation."""
    program, tests = mutations[number].test
    environment = {**os.environ, "CPNSA_MUTANT": str(number), "CPNSA_DEADLINE": "20"}
    command = [cpp / "bin" / program, f"--gtest_filter={tests}", "--gtest_brief=1"]
    return passes(command, environment, "0 tests from", 180)


def run_python(number):
    mutation = mutations[number]
    package = work / "python" / "cpnsa"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(root / "python" / "cpnsa", package)
    for library in (cpp / "python" / "cpnsa").glob("_*.so"):
        shutil.copy(library, package)
    if number >= 0:
        target = package / pathlib.Path(mutation.file).relative_to("python/cpnsa")
        target.write_text(target.read_text().replace(mutation.old, mutation.new))
    file, tests = mutation.test
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", tests,
               root / "tests" / "python" / file]
    environment = {**os.environ, "PYTHONPATH": str(work / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    return passes(command, environment, "no tests ran", 600)


def passes(command, environment, nothing, limit):
    try:
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False
    if nothing in outcome.stdout:
        raise SystemExit(f"{command}: ran no test")
    return outcome.returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("filter", nargs="?", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-j", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    wrong = problems()
    for problem in wrong:
        print(problem)
    if wrong or arguments.check:
        print(f"{len(mutations)} mutations, {len(wrong)} do not apply")
        return 1 if wrong or len(mutations) < 40 else 0
    chosen = [number for number, mutation in enumerate(mutations)
              if arguments.filter in mutation.file or arguments.filter in mutation.new]
    work.mkdir(parents=True, exist_ok=True)
    copy_tree(chosen)
    build(chosen, arguments.j)
    unnoticed = []
    for number in chosen:
        noticed = not (run_python if mutations[number].file.endswith(".py") else run_cpp)(number)
        print(f"{number:3} {'noticed' if noticed else 'NOT NOTICED'}: {mutations[number].file}: "
              f"{' '.join(mutations[number].new.split())}", flush=True)
        if not noticed:
            unnoticed.append(number)
    print(f"{len(chosen)} mutations, {len(unnoticed)} not noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
