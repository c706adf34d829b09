#!/usr/bin/env python3
"""Imitates two hosts on one machine, runs the command over MPI between them, and compares the plan with the run.

    two_hosts.py [--build build/cpu] [--ranks 2] [--rate 500mbit] [--delay 1ms] [--tokens 4K,16K] [--suites]

A host is a network namespace with a name of its own; a pair of virtual interfaces joins the two, held to --rate and, if
--delay is given and the kernel has netem, late by --delay. Ranks of one host share memory, those of two hosts use TCP.

Runs the golden layers (the selected blocks are those of one rank), `cpnsa doctor`, `cpnsa bench` for every exchange
mode, and `cpnsa plan` with the times of one rank and the links that doctor measured; --suites adds the MPI test suites.
Exit status 1 if anything is wrong, 77 where this machine cannot: it takes root, ip and tc (iproute2), and Open MPI.
"""

import argparse
import contextlib
import filecmp
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYER = ["--heads", "8", "--kv-heads", "2", "--dk", "32", "--dv", "32", "--device", "cpu", "--dtype", "f32",
         "--partition", "zigzag"]
MODES = ("fetch", "gather", "auto")
SUITES = ("golden_mpi_test", "communicator_mpi_test", "attention_mpi_test")


class CannotRun(Exception):
    """This machine lacks something."""


def ip(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRun(f"{shlex.join(words)}: {done.stderr.strip()}")


class TwoHosts:
    """Two namespaces while the context lasts, and a folder for the script that mpirun starts its daemons with."""

    def __init__(self, rate, delay, folder):
        self.rate, self.delay = rate, delay
        self.names = [f"cpnsa{os.getpid()}h{host}" for host in (1, 2)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.agent = folder / "start_on_host.sh"
        self.agent.write_text("#!/bin/sh\nhost=$1\nshift\ncase $host in\n" + "".join(
            f"{address}) exec ip netns exec {name} unshare --uts sh -c \"hostname {name}; $*\" ;;\n"
            for address, name in zip(self.addresses, self.names)) + "esac\nexit 1\n")
        self.agent.chmod(0o755)

    def __enter__(self):
        ends = [f"v{os.getpid()}{end}" for end in "ab"]
        try:
            for name in self.names:
                ip("ip", "netns", "add", name)
            ip("ip", "link", "add", ends[0], "netns", self.names[0], "type", "veth", "peer", "name", ends[1], "netns",
               self.names[1])
            for name, end, address in zip(self.names, ends, self.addresses):
                ip("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
                ip("ip", "-n", name, "link", "set", end, "up")
                ip("ip", "-n", name, "link", "set", "lo", "up")
                limit = ["tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms"]
                ip("tc", "-n", name, "qdisc", "add", "dev", end, "root", "handle", "1:", *limit)
                if self.delay:
                    ip("tc", "-n", name, "qdisc", "add", "dev", end, "parent", "1:1", "netem", "delay", self.delay)
        except CannotRun:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def run(self, ranks, command, **keywords):
        """Runs ranks of a command, half of them on each host; the first host fills first."""
        first = (ranks + 1) // 2
        counts = zip(self.addresses, (first, ranks - first))
        hosts = ",".join(f"{address}:{count}" for address, count in counts if count)
        mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--host", hosts, "-n", str(ranks),
                  "--mca", "plm_rsh_agent", str(self.agent), "--mca", "btl", "self,vader,tcp",
                  "--mca", "btl_tcp_if_include", "10.77.0.0/24", "--mca", "oob_tcp_if_include", "10.77.0.0/24",
                  *command]
        inside = f"hostname {self.names[0]}; exec {shlex.join(map(str, mpirun))}"
        return subprocess.run(["ip", "netns", "exec", self.names[0], "unshare", "--uts", "sh", "-c", inside],
                              capture_output=True, text=True, timeout=600, **keywords)


class Checks:
    def __init__(self, hosts, arguments, folder):
        self.hosts, self.folder, self.ranks = hosts, folder, arguments.ranks
        self.build, self.tokens = arguments.build, arguments.tokens
        self.cpnsa = arguments.build / "bin" / "cpnsa"
        self.failures = []

    def run(self, what, ranks, command, accepted=(0,)):
        done = self.hosts.run(ranks, command)
        if done.returncode not in accepted:
            self.failures.append(what)
            print(f"{what}: status {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done

    def layers(self):
        for case in sorted(path for path in (ROOT / "tests/golden/cases").iterdir() if path.is_dir()):
            outs = [self.folder / f"{case.name}-{ranks}" for ranks in (1, self.ranks)]
            for out, ranks in zip(outs, (1, self.ranks)):
                self.run(f"cpnsa run {case.name}", ranks, [self.cpnsa, "run", "--in", case / "in", "--out", out,
                                                           "--device", "cpu", "--dtype", "f64"])
            same = all((out / "selected.npy").exists() for out in outs) and filecmp.cmp(
                *(out / "selected.npy" for out in outs), shallow=False)
            if not same:
                self.failures.append(case.name)
            print(f"layer {case.name}: {'the' if same else 'NOT the'} selected blocks of one rank")

    def doctor(self):
        """Status 1 is a serious fault, such as few open files; what counts here are hosts, data and links."""
        path = self.folder / "doctor.json"
        self.run("cpnsa doctor", self.ranks, [self.cpnsa, "doctor", "--device", "cpu", "-J", path], accepted=(0, 1))
        report = json.loads(path.read_text())
        wide = [link for link in report["links"] if not link["same_host"]]
        entries = report["links"] + report["collectives"] + report["exchange_modes"]
        if report["provenance"]["nodes"] != 2 or not wide or not all(entry["right"] for entry in entries):
            self.failures.append("cpnsa doctor")
        print(f"doctor: {report['provenance']['nodes']} hosts, {len(wide)} links between them of "
              f"{min(link['gb_per_second'] for link in wide):.4f} to "
              f"{max(link['gb_per_second'] for link in wide):.4f} GB/s")
        for fault in report["faults"]:
            print(f"  {fault['severity']}: {fault['problem']}")
        return path

    def bench(self, ranks, tokens, mode):
        path = self.folder / f"bench-{ranks}-{tokens}-{mode}.json"
        self.run(f"cpnsa bench {tokens} {mode}", ranks,
                 [self.cpnsa, "bench", "-b", tokens, "-e", tokens, "-n", "3", *LAYER, "--exchange", mode, "-J", path])
        return path

    def compare(self, links):
        """A table of predicted and measured steps."""
        print(f"{'tokens':>8} {'mode':>12} {'pass':>9} {'predicted ms':>13} {'measured ms':>12} {'difference':>10} "
              f"{'MiB':>8}")
        for tokens in self.tokens:
            alone = self.bench(1, tokens, "auto")
            for mode in MODES:
                row = json.loads(self.bench(self.ranks, tokens, mode).read_text())["rows"][0]
                plan = self.run(f"cpnsa plan {tokens}", 1,
                                [self.cpnsa, "plan", "-J", "--tokens", tokens, "--ranks", str(self.ranks), "--measured",
                                 alone, "--links", links, "--exchange", mode, *LAYER], accepted=(0, 3))
                planned = json.loads(plan.stdout)["rows"][0]
                name = mode if mode != "auto" else f"auto: {row['exchange']}"
                for direction in ("forward", "backward"):
                    predicted, measured = planned[f"{direction}_seconds"], row[direction]["seconds"]
                    moved = row[direction]["bytes_received"] / 2**20
                    print(f"{tokens:>8} {name:>12} {direction:>9} {1e3 * predicted:>13.2f} {1e3 * measured:>12.2f} "
                          f"{100 * (predicted / measured - 1):>+9.0f}% {moved:>8.2f}")

    def suites(self):
        for suite in SUITES:
            environment = ["-x", "CPNSA_TEST_SEEDS=1-1"]
            done = self.run(suite, self.ranks, [*environment, self.build / "bin" / suite, "--gtest_color=no"])
            passed = re.findall(r"\[  PASSED  \] (\d+) tests?", done.stdout)
            print(f"{suite}: {passed[-1] if passed else 'no'} tests passed on {self.ranks} ranks")
            if not passed or passed[-1] == "0":
                self.failures.append(suite)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=lambda text: pathlib.Path(text).resolve(), default=ROOT / "build" / "cpu")
    parser.add_argument("--ranks", type=int, default=2, help="more than there are cores are slower than predicted")
    parser.add_argument("--rate", default="500mbit", help="of the link, as tc understands it")
    parser.add_argument("--delay", help="of the link, as tc understands it; takes a kernel with netem")
    parser.add_argument("--tokens", type=lambda text: text.split(","), default=["4K", "16K"])
    parser.add_argument("--suites", action="store_true")
    arguments = parser.parse_args()
    missing = [tool for tool in ("ip", "tc", "unshare", "mpirun") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing:
        print(f"two_hosts.py: found no {' and no '.join(missing) or 'root'}, expected both", file=sys.stderr)
        return 77
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            hosts = stack.enter_context(TwoHosts(arguments.rate, arguments.delay, folder))
        except CannotRun as problem:
            print(f"two_hosts.py: {problem}", file=sys.stderr)
            return 77
        checks = Checks(hosts, arguments, folder)
        checks.layers()
        checks.compare(checks.doctor())
        if arguments.suites:
            checks.suites()
    print(f"failed: {', '.join(checks.failures)}" if checks.failures else "all right")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
