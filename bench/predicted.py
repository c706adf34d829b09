#!/usr/bin/env python3
"""Sets what `cpnsa plan` predicts beside what docs/performance has measured, and draws predicted scaling:
predicted.py --command build/cpu/bin/cpnsa [--out DIR]. Prints the tables of docs/planning.md; with --out it also writes
predicted-scaling.svg there."""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

from svg import Lines, picture
from tables import length_name

PERFORMANCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs", "performance")
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def read(name):
    with open(os.path.join(PERFORMANCE, name), encoding="utf-8") as file:
        return json.load(file)


def plan(command, *flags):
    outcome = subprocess.run([command, "plan", "-J", *map(str, flags)], capture_output=True, text=True, check=False)
    if outcome.returncode not in (0, 3):
        sys.exit(f"predicted.py: {outcome.stderr.strip()}")
    return json.loads(outcome.stdout)


def line(what, passed, predicted, measured):
    difference = 100 * (predicted / measured - 1)
    return f"| {what} | {passed} | {1e3 * predicted:.2f} | {1e3 * measured:.2f} | {difference:+.1f} % |"


def one_gpu(command):
    """Other lengths, selections and shapes than those that the built-in times are from."""
    for name, dk in (("h200-128.json", 128), ("h200-192.json", 192)):
        for row in read(name)["rows"]:
            for selection, entry in row["nsa"].items():
                if "backward" not in entry:
                    continue
                flags = ["--tokens", row["tokens"], "--ranks", 1, "--dk", dk, "--hidden", 256 if dk == 128 else 384]
                found = plan(command, *flags, "--selection", selection)["rows"][0]
                for passed in ("forward", "backward"):
                    yield line(f"{length_name(row['tokens'])}, d_qk {dk}, `{selection}`", passed,
                               found[f"{passed}_seconds"], entry[passed]["seconds"])


def two_gpus(command):
    """Two ranks from the times of one rank of the same run."""
    rows = read("h200-x2.json")["rows"]
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            if row["ranks"] != 2 or row["documents"] != 1:
                continue
            alone = next(other for other in rows if other["ranks"] == 1 and other["documents"] == 1 and
                         (other["tokens"], other["selection"]) == (row["tokens"], row["selection"]))
            path = os.path.join(folder, "bench.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(alone["bench"], file)
            flags = ["--tokens", row["tokens"], "--ranks", 2, "--partition", row["partition"], "--exchange",
                     row["exchange"], "--selection", row["selection"], "--measured", path, "--hidden", 256]
            found = plan(command, *flags, *([] if row["backward"] else ["--no-backward"]))["rows"][0]
            measured = row["bench"]["rows"][0]
            for passed in ("forward", "backward"):
                if passed in measured:
                    setting = ", ".join([length_name(row["tokens"]), row["partition"], row["exchange"],
                                         f"`{row['selection']}`"])
                    yield line(setting, passed, found[f"{passed}_seconds"], measured[passed]["seconds"])


def scaling(command):
    series, ideals = {}, {}
    for tokens, name in ((131072, "128K"), (1048576, "1M"), (10485760, "10M")):
        curve = plan(command, "--tokens", tokens, "--ranks", 1)["curve"]  # to 512 ranks
        series[f"{name} tokens"] = [(point["ranks"], 1e3 * point["seconds"]) for point in curve]
        ideals[f"{name} tokens"] = [(point["ranks"], 1e3 * curve[0]["seconds"] / point["ranks"]) for point in curve]
    # The vertical axis ends at a power of ten below the series; ideal lines end there too.
    lowest = 10 ** math.floor(math.log10(min(y for line in series.values() for _, y in line)))
    ideals = {name: [(x, y) for x, y in line if y >= lowest] for name, line in ideals.items()}
    names = {ranks: str(ranks) for ranks in RANKS}
    panel = Lines("forward and backward", "GPUs", "milliseconds", series, names, ideals=ideals)
    return picture([panel], "Predicted, not measured: time of a layer",
                   "cpnsa plan, H200, NVLink in nodes of 8, 400 Gb/s between them, bf16, 64 query and 4 KV heads "
                   "of 128, one document, zigzag, random selection; dashed: ideal")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", required=True, metavar="FILE", help="the command cpnsa")
    parser.add_argument("--out", metavar="DIR", help="folder for predicted-scaling.svg")
    arguments = parser.parse_args()
    head = "| setting | pass | predicted, ms | measured, ms | difference |\n|---|---|---:|---:|---:|"
    for rows in (one_gpu, two_gpus):
        print("\n".join([head, *rows(arguments.command), ""]))
    if arguments.out:
        with open(os.path.join(arguments.out, "predicted-scaling.svg"), "w", encoding="utf-8") as file:
            file.write(scaling(arguments.command))


if __name__ == "__main__":
    main()
