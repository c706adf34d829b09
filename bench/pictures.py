#!/usr/bin/env python3
"""The pictures of results that bench/against_full_attention.py and bench/cluster.py wrote. As a program: redraws the
pictures of docs/performance from the JSON files there; --check fails if one of them is not what it would draw."""

import argparse
import json
import os
import sys

import cluster_report
from full_attention import TITLES
from svg import Lines, StackedBars, picture
from tables import PASSES, STAGES, length_name, seconds_of, shape_of

PERFORMANCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs", "performance")


def setting_of(results):
    """GPU, shape, type, commit and date, and the blocks if they are recorded."""
    machine, commit, date = results["machine"], results["commit"][:12], results["date"][:10]
    parts = [machine.get("gpu", "no GPU"), "bf16", shape_of(results["setting"])]
    entries = [entry for row in results["rows"] for entry in row["nsa"].values() if "setting" in entry]
    if entries:
        c = entries[0]["setting"]["config"]
        parts.append(f"l {c['compress_block']}, s {c['compress_stride']}, m {c['select_block']}, "
                     f"n {c['select_count']}, w {c['window']}, compressor {c['compressor']}")
    return ", ".join([*parts, "one document", f"commit {commit}", date])


def _points(results, kind, name, direction):
    points = [(row["tokens"], seconds_of(row[kind].get(name, {}), direction)) for row in results["rows"]]
    return [(tokens, seconds) for tokens, seconds in points if seconds is not None]


def _x_names(results):
    return {row["tokens"]: length_name(row["tokens"]) for row in results["rows"]}


def time_picture(results):
    """Milliseconds against tokens, a panel per pass."""
    panels, setting = [], results["setting"]
    for direction in PASSES:
        named = {TITLES[name]: ("full", name) for name in setting["full"]}
        named.update({f"NSA, {selection}": ("nsa", selection) for selection in setting["selections"]})
        series = {title: [(x, 1e3 * y) for x, y in _points(results, *source, direction)]
                  for title, source in named.items()}
        panels.append(Lines(direction, "tokens", "milliseconds", series, _x_names(results)))
    return picture(panels, "Time of a layer against its length", setting_of(results))


def stage_picture(results):
    """Microseconds per 1K tokens, stacked by stage, a panel per pass and selection."""
    panels = []
    for direction in PASSES:
        for selection in results["setting"]["selections"]:
            bars = {}
            for row in results["rows"]:
                entry = row["nsa"].get(selection, {})
                if seconds_of(entry, direction) is None:
                    continue
                seconds = entry[direction]["stage_seconds"]
                bars[length_name(row["tokens"])] = {s: 1e6 * seconds[s] / (row["tokens"] / 1024) for s in STAGES}
            panels.append(StackedBars(f"{direction}, {selection} selection", "tokens", "µs per 1K tokens", bars))
    return picture(panels, "Time of the stages", setting_of(results))


def speedup_picture(forward, step):
    """Speedup over cuDNN's full attention against tokens: a forward alone, and the backward of a step."""
    panels = []
    for title, results, direction in (("forward alone", forward, "forward"), ("backward", step, "backward")):
        full = dict(_points(results, "full", "cudnn", direction))
        series = {f"NSA, {selection}": [(tokens, full[tokens] / seconds)
                                        for tokens, seconds in _points(results, "nsa", selection, direction)
                                        if tokens in full] for selection in results["setting"]["selections"]}
        panels.append(Lines(title, "tokens", "times as fast", series, _x_names(results), log_y=False,
                            level=(1, "full attention (cuDNN)")))
    return picture(panels, "Speedup over full attention (cuDNN), the whole layer", setting_of(forward))


def scaling_picture(results):
    gpus = results["gpus_of_this_machine"]
    hardware = f"{len(gpus)} x {gpus[0].split(': ')[1]}" if gpus else f"device {results['device']}"
    setting = f"{hardware}, exchange auto, balanced partitions, {results['date'][:10]}; dashed: ideal"
    return picture(cluster_report.scaling_panels(results), "Time against ranks", setting)


def pictures_of_docs():
    def read(name):
        with open(os.path.join(PERFORMANCE, name), encoding="utf-8") as file:
            return json.load(file)

    step, forward, two = read("h200-128.json"), read("h200-128-forward.json"), read("h200-x2.json")
    return {"speedup.svg": speedup_picture(forward, step), "h200-128-time.svg": time_picture(step),
            "h200-128-stages.svg": stage_picture(step), "h200-x2-scaling.svg": scaling_picture(two)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="writes nothing; status 1 if a picture differs")
    arguments, different = parser.parse_args(), []
    for name, content in pictures_of_docs().items():
        path = os.path.join(PERFORMANCE, name)
        if not arguments.check:
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
            continue
        with open(path, encoding="utf-8") as file:
            if file.read() != content:
                different.append(path)
    if different:
        sys.exit(f"pictures.py: error: found other content in {', '.join(different)}, expected what the program draws")


if __name__ == "__main__":
    main()
