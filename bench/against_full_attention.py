#!/usr/bin/env python3
"""Times `cpnsa bench` against full causal attention (cuDNN's and FlashAttention-2's, through PyTorch) on the same GPU
in the same run. Prints our ratio to both for each length and direction, and writes results.json, report.md, time.svg
and stages.svg. What cannot be measured gets a dash and the reason."""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time

import full_attention
from nsa import measure_nsa
from pictures import stage_picture, time_picture
from tables import PASSES, length_name, report, seconds_of


@dataclasses.dataclass
class Shape:
    heads: int
    kv_heads: int
    dk: int
    dv: int


def parse_length(text):
    for suffix, factor in {"K": 1 << 10, "M": 1 << 20}.items():
        if text.upper().endswith(suffix):
            return int(text[:-1]) * factor
    return int(text)


def parse_lengths(text):
    return [parse_length(part) for part in text.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cpnsa", default="build/cuda/bin/cpnsa", help="the command")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; existing ones are an error")
    parser.add_argument("--lengths", type=parse_lengths, default="8K,16K,32K,64K,128K", help="tokens")
    parser.add_argument("--backward-to", type=parse_length, default="64K", help="longest length with a backward")
    parser.add_argument("--skip-backward", action="store_true", help="forward only")
    parser.add_argument("--heads", type=int, default=64, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--dk", type=int, default=128)
    parser.add_argument("--dv", type=int, default=128)
    parser.add_argument("--selection", choices=("random", "local", "both"), default="both")
    parser.add_argument("--full", choices=("cudnn", "flash2", "both", "none"), default="both", help="full attention")
    parser.add_argument("--iterations", type=int, default=20, help="at most; slow ones are timed less often")
    parser.add_argument("--seconds", type=float, default=2.5, help="about what one full attention may take")
    parser.add_argument("--time-limit", type=float, default=540, help="seconds; what comes after them is left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of cpnsa bench; cpu to try this out")
    parser.add_argument("--commit", help="named in the results (default: what git says)")
    parser.add_argument("bench_arguments", nargs="*", metavar="-- ARG", help="further flags of cpnsa bench, after --")
    return parser.parse_args()


def commit_of_tree():
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
        return commit + (" with changes" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.shape = Shape(arguments.heads, arguments.kv_heads, arguments.dk, arguments.dv)
        self.full = {"both": ["cudnn", "flash2"], "none": []}.get(arguments.full, [arguments.full])
        self.selections = ["random", "local"] if arguments.selection == "both" else [arguments.selection]
        self.started = time.monotonic()
        self.stopwatch = None
        if not full_attention.unavailable():
            self.stopwatch = full_attention.Stopwatch(arguments.iterations, arguments.seconds)
        setting = {"full": self.full, "selections": self.selections, **dataclasses.asdict(self.shape)}
        self.results = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": arguments.commit or commit_of_tree(),
            "machine": full_attention.describe_machine(),
            "setting": setting,
            "ceilings": {},
            "rows": [],
        }

    def run(self):
        self.say("ceilings of the GPU")
        self.results["ceilings"] = full_attention.measure_ceilings(self.stopwatch)
        for tokens in self.arguments.lengths:
            row = {"tokens": tokens, "full": {}, "nsa": {}}
            self.results["rows"].append(row)
            for name in self.full:
                row["full"][name] = self.one(full_attention.TITLES[name], tokens, self.measure_full(name, tokens))
            for selection in self.selections:
                row["nsa"][selection] = self.one(f"NSA {selection}", tokens, self.measure_nsa(selection, tokens))
            self.write()  # a run that is cut off leaves what it has

    def measure_full(self, name, tokens):
        return lambda: full_attention.measure_full(name, self.shape, tokens, self.backward(tokens), self.stopwatch)

    def measure_nsa(self, selection, tokens):
        a = self.arguments
        return lambda: measure_nsa(a.cpnsa, self.shape, tokens, selection, self.backward(tokens), a.iterations,
                                   ["--device", a.device, *a.bench_arguments], self.remaining())

    def one(self, title, tokens, measure):
        self.say(f"{length_name(tokens)} {title}")
        if self.remaining() <= 0:
            return {"failed": f"the time limit of {self.arguments.time_limit:.0f} s was over"}
        result = measure()
        for direction in PASSES:
            seconds = seconds_of(result, direction)
            if seconds is not None:
                rate = result[direction]["tflops_per_second"]
                self.say(f"{length_name(tokens)} {title} {direction}: {1e3 * seconds:.2f} ms, {rate:.3g} TFLOP/s")
        for part in (result, *(result.get(direction, {}) for direction in PASSES)):
            if "failed" in part:
                self.say(f"{length_name(tokens)} {title}: {part['failed']}")
        return result

    def backward(self, tokens):
        return not self.arguments.skip_backward and tokens <= self.arguments.backward_to

    def remaining(self):
        return self.arguments.time_limit - (time.monotonic() - self.started)

    def say(self, text):
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def path(self, name):
        return os.path.join(self.arguments.out, name)

    def write(self):
        with open(self.path("results.json"), "w", encoding="utf-8") as file:
            json.dump(self.results, file, indent=2)
        with open(self.path("report.md"), "w", encoding="utf-8") as file:
            file.write(report(self.results))
        for name, draw in {"time.svg": time_picture, "stages.svg": stage_picture}.items():
            with open(self.path(name), "w", encoding="utf-8") as file:
                file.write(draw(self.results))


def main():
    arguments = parse_arguments()
    os.makedirs(arguments.out, exist_ok=True)
    if os.path.exists(os.path.join(arguments.out, "results.json")):
        sys.exit(f"{arguments.out}/results.json exists already; expected a folder without results")
    comparison = Comparison(arguments)
    comparison.run()
    print(report(comparison.results))


if __name__ == "__main__":
    main()
