#!/usr/bin/env python3
"""Correctness, scaling and the cost of communication on all GPUs of a machine or of a job of several nodes, in a time
limit: the indices of a layer on 2, 4, 8 ... ranks against one rank's, `cpnsa bench` over a grid of documents,
partitions, exchanges and selections, and the examples. Prints one table and writes results.json, report.md and
scaling.svg. What did not run is listed with its reason. Usually started by scripts/cluster.sh."""

import argparse
import datetime
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time

from cluster_grid import grid
from cluster_report import report, wrong
from pictures import scaling_picture

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/cuda"), metavar="DIR", help="build folder")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder of the results; an existing one is an error")
    parser.add_argument("--ranks", type=int, default=0, help="most ranks, a GPU each (0: the GPUs of this machine)")
    parser.add_argument("--launch", default="mpirun --bind-to none -n {ranks}",
                        help="what starts {ranks} ranks, on {nodes} nodes of --ranks-per-node, {per_node} on each")
    parser.add_argument("--ranks-per-node", type=int, default=0, metavar="N",
                        help="the ranks that fill a node before the next one gets any (0: all are on one)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this out, at tiny sizes")
    parser.add_argument("--time-limit", type=float, default=600, metavar="S", help="what comes after is left out")
    parser.add_argument("--step-limit", type=float, default=90, metavar="S", help="seconds that one step may take")
    return parser.parse_args()


class Session:
    """Runs one program after another as long as there is time, and remembers what became of each."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.end = time.monotonic() + arguments.time_limit
        self.failures = []

    def program(self, name):
        return os.path.join(self.arguments.build, "bin", name)

    def has(self, name):
        return os.access(self.program(name), os.X_OK)

    def launched(self, ranks, *command):
        per_node = min(ranks, self.arguments.ranks_per_node or ranks)
        launch = self.arguments.launch.format(ranks=ranks, nodes=math.ceil(ranks / per_node), per_node=per_node)
        return [*shlex.split(launch), *command]

    def run(self, title, command, environment=()):
        """True if the program ended well; a failure is noted with its reason."""
        left = min(self.arguments.step_limit, self.end - time.monotonic())
        if left <= 1:
            self.failures.append((title, "not run: out of time"))
            return False
        print(f"[{self.end - time.monotonic():4.0f} s left] {title}", file=sys.stderr, flush=True)
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       env={**os.environ, **dict(environment)}, start_new_session=True)
        except OSError as error:
            self.failures.append((title, f"cannot start: {error}"))
            return False
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            said = " ".join(output.split())[-300:]
            self.failures.append((title, f"ended after {left:.0f} s" + (f"; last it said: {said}" if said else "")))
            return False
        if process.returncode == 0:
            return True
        reason = next((line for line in output.splitlines() if "error" in line.lower() or "FAILED" in line), "")
        self.failures.append((title, f"status {process.returncode}: {reason.strip() or output.strip()[-200:]}"))
        return False


def rank_counts(most):
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == most else [*counts, most]


def gpus_here():
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line for line in listing.splitlines() if line.startswith("GPU")]


def run_suites(session, counts):
    """The GPU suites whose ranks are processes of this machine, a GPU each."""
    here = max(1, len(gpus_here()))
    results = []
    for suite in ("communicator_nccl_test", "attention_nccl_test"):
        for ranks in counts:
            if ranks > here or session.arguments.device != "cuda" or not session.has(suite):
                continue
            title = f"{suite}, ranks: {ranks}"
            passed = session.run(title, [session.program(suite), str(ranks)], {"CPNSA_TEST_SEEDS": "1-1"}.items())
            results.append({"suite": suite, "ranks": ranks, "passed": passed})
    return results


def read(path):
    with open(path, "rb") as file:
        return file.read()


def compare_layers(session, counts):
    """Compares the indices of every golden layer, however it is sharded, with those of one rank, byte by byte."""
    cases, results = os.path.join(ROOT, "tests/golden/cases"), []
    names = sorted(os.listdir(cases))
    for case in names[:1] if session.arguments.device == "cpu" else names:
        for ranks in counts:
            for partition in ("contiguous", "zigzag"):
                for exchange in ("fetch", "gather"):
                    if ranks == 1 and (partition, exchange) != ("contiguous", "fetch"):
                        continue
                    title = f"layer {case}, ranks: {ranks}, {partition}, {exchange}"
                    out = os.path.join(session.arguments.out, "layers", f"{case}-{ranks}-{partition}-{exchange}")
                    one = os.path.join(session.arguments.out, "layers", f"{case}-1-contiguous-fetch", "selected.npy")
                    os.makedirs(os.path.dirname(out), exist_ok=True)
                    ran = session.run(title, session.launched(
                        ranks, session.program("cpnsa"), "run", "--in", os.path.join(cases, case, "in"), "--out", out,
                        "--device", session.arguments.device, "--dtype", "bf16", "--partition", partition, "--exchange",
                        exchange))
                    same = ran and os.path.exists(one) and read(os.path.join(out, "selected.npy")) == read(one)
                    if ran and not same:
                        session.failures.append((title, "WRONG: the indices are not those of one rank"))
                    results.append({"layer": case, "ranks": ranks, "partition": partition, "exchange": exchange,
                                    "ran": ran, "same_indices": same})
    return results


def measure(session, counts):
    """The grid; a row a point, with what `cpnsa bench` wrote."""
    rows = []
    for number, point in enumerate(grid(counts, session.arguments.device == "cpu")):
        path = os.path.join(session.arguments.out, "bench", f"{number:03}.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = [*point.flags(), "--device", session.arguments.device, "-J", path]
        command = session.launched(point.ranks, session.program("cpnsa"), "bench", *flags)
        if session.run(f"bench: {point.title()}", command):
            with open(path, encoding="utf-8") as file:
                rows.append({**point.describe(), "bench": json.load(file)})
    return rows


def run_examples(session, counts):
    tiny, device = session.arguments.device == "cpu", session.arguments.device
    steps = {"language_model": ["--steps", "4" if tiny else "30", "--tokens", "256" if tiny else "16384"],
             "needle_in_a_haystack": ["--steps", "4" if tiny else "60", "--tokens", "512" if tiny else "2048",
                                      "--longest", "1K" if tiny else "8K", "--sequences", "1" if tiny else "20"]}
    results = []
    for name, flags in steps.items():
        if not session.has(name):
            session.failures.append((name, "not built"))
            continue
        asked = subprocess.run([session.program(name), "--help"], capture_output=True, text=True, check=False)
        flags = [*flags, "--device", device] if "--device" in asked.stdout else flags
        for ranks in [counts[0], counts[-1]] if len(counts) > 1 else counts:
            out = os.path.join(session.arguments.out, f"{name}-{ranks}")
            begin = time.monotonic()
            passed = session.run(f"{name}, ranks: {ranks}",
                                 session.launched(ranks, session.program(name), "--out", out, *flags))
            results.append({"example": name, "ranks": ranks, "passed": passed, "seconds": time.monotonic() - begin})
    return results


def provenance(session):
    """Version, commit, libraries and GPUs, as `cpnsa info` says; the hosts of a run are in its `bench`."""
    outcome = subprocess.run([session.program("cpnsa"), "info", "-J"], capture_output=True, text=True, check=False)
    return json.loads(outcome.stdout) if outcome.returncode == 0 else {}


def main():
    arguments = parse_arguments()
    gpus = gpus_here()
    most = arguments.ranks or (len(gpus) if arguments.device == "cuda" else 2)
    if most < 1:
        sys.exit("cluster.py: error: --ranks: found no GPU here, expected at least one (--device cpu tries this out)")
    if not os.access(os.path.join(arguments.build, "bin", "cpnsa"), os.X_OK):
        sys.exit(f"cluster.py: error: --build: found no bin/cpnsa in {arguments.build}, expected a finished build")
    try:
        os.makedirs(arguments.out)
    except FileExistsError:
        sys.exit(f"cluster.py: error: --out: {arguments.out} exists already, expected a new folder")

    session, counts = Session(arguments), rank_counts(most)
    results = {"provenance": provenance(session),
               "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
               "device": arguments.device, "ranks": most, "gpus_of_this_machine": gpus, "launch": arguments.launch}
    # Correctness comes before speed, and the largest rank count before the others: time may run out.
    results["layers"] = compare_layers(session, counts)
    results["suites"] = run_suites(session, counts[-1:])
    results["examples"] = run_examples(session, counts)
    results["rows"] = measure(session, counts)
    results["suites"] += run_suites(session, counts[:-1])
    results["failures"] = [{"what": what, "reason": reason} for what, reason in session.failures]

    text = report(results)
    with open(os.path.join(arguments.out, "results.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(arguments.out, "report.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(arguments.out, "scaling.svg"), "w", encoding="utf-8") as file:
        file.write(scaling_picture(results))
    print(text)
    sys.exit(1 if wrong(results) else 0)


if __name__ == "__main__":
    main()
