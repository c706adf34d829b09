#!/usr/bin/env python3
"""Tables and pictures of the results of bench/quality.py: report.md and *.svg beside results.json.

    python3 bench/quality_report.py results
"""

import argparse
import json
import pathlib
import re
import statistics
import sys

from svg import HeatMap, Lines, StackedBars, picture
from tables import length_name, markdown

LOSS_GOAL, BUCKET_GOAL, RETRIEVAL_GOAL = 0.005, 0.01, 1.0  # shares of full attention's loss; points of a score
TITLES = {"nsa": "NSA", "full": "full attention"}
#: Names of the runs that are compared; those of ablations and of several GPUs do not match.
NAMES = {"train": re.compile(r"(?P<attention>nsa|full)-(?P<size>\w+)-(?P<seed>\d+)"),
         "retrieval": re.compile(r"retrieval-(?P<attention>nsa|full)(?P<size>)-(?P<seed>\w+)")}


def pairs_of(runs, program):
    """{size: {attention: {seed: entry}}} of the complete runs of a program that are compared."""
    found = {}
    for name, entry in runs.items():
        match = NAMES[program].fullmatch(name)
        if match and entry["program"] == program and entry["status"] == "complete":
            found.setdefault(match["size"], {}).setdefault(match["attention"], {})[match["seed"]] = entry
    return found


def final(entry):
    return entry["summary"]["evaluations"][-1]


def mean_loss(entries):
    return statistics.mean(final(entry)["loss"] for entry in entries.values())


def verdict(excess, goal):
    return "reached" if excess <= goal else f"missed by {100 * (excess - goal):.2f} points"


def loss_table(runs):
    """A row per run of train.py: held-out loss, speed, size."""
    rows = []
    for name, entry in runs.items():
        if entry["program"] != "train":
            continue
        summary = entry.get("summary")
        if not summary or not summary["evaluations"]:
            rows.append([name, entry["status"]] + ["-"] * 6)
            continue
        settings = summary["settings"]
        speeds = [point["tokens_per_second"] for point in entry["curve"]]
        rates = [point["mfu"] for point in entry["curve"] if point["mfu"]]
        rows.append([name, entry["status"], f"{summary['parameters'] / 1e6:.2f}", f"{settings['tokens'] / 1e6:.1f}",
                     f"{final(entry)['loss']:.4f}", f"{statistics.median(speeds):.0f}",
                     f"{100 * statistics.median(rates):.1f}" if rates else "-", f"{summary['seconds'] / 3600:.3f}"])
    head = ["run", "status", "parameters, M", "tokens, M", "held-out loss", "tokens/s", "MFU %", "hours"]
    return markdown(head, rows)


def comparison(size, attentions):
    """Lines that compare NSA with full attention at one size, in all and by position."""
    if set(attentions) != {"nsa", "full"}:
        return [f"{size}: not yet compared, complete are only {', '.join(sorted(attentions))}."]
    nsa, full = attentions["nsa"], attentions["full"]
    excess = mean_loss(nsa) / mean_loss(full) - 1
    lines = [f"**{size}**, {len(nsa)} and {len(full)} seeds: NSA's held-out loss is {100 * excess:+.2f} % of full "
             f"attention's; at most {100 * LOSS_GOAL:g} % is the goal: {verdict(excess, LOSS_GOAL)}."]
    for name, entries in attentions.items():
        if len(entries) > 1:
            losses = [final(entry)["loss"] for entry in entries.values()]
            lines.append(f"Noise between seeds of {TITLES[name]}: {100 * (max(losses) / min(losses) - 1):.2f} %.")
    rows = []
    for index, bucket in enumerate(final(next(iter(full.values())))["buckets"]):
        means = [statistics.mean(final(entry)["buckets"][index]["loss"] for entry in entries.values())
                 for entries in (nsa, full)]
        rows.append([f"{bucket['from']} – {bucket['to']}", str(bucket["tokens"]), f"{means[0]:.4f}", f"{means[1]:.4f}",
                     f"{100 * (means[0] / means[1] - 1):+.2f}", verdict(means[0] / means[1] - 1, BUCKET_GOAL)])
    head = ["position", "tokens", "NSA", "full", "difference, %", f"at most {100 * BUCKET_GOAL:g} %"]
    return [" ".join(lines), "", markdown(head, rows)]


def changes_table(runs):
    """Ablations and other rank counts: held-out loss beside that of the run whose settings they change. Empty if
    there is none."""
    rows = []
    for name, entry in runs.items():
        match = re.fullmatch(r"(nsa-\w+?)-(?:1-)?([a-z][\w-]*)", name)
        base = runs.get(f"{match[1]}-1") if match else None
        if base and all(one["program"] == "train" and one["status"] == "complete" for one in (base, entry)):
            loss, expected = final(entry)["loss"], final(base)["loss"]
            rows.append([name, f"{loss:.4f}", f"{100 * (loss / expected - 1):+.2f}",
                         f"{statistics.median(point['tokens_per_second'] for point in entry['curve']):.0f}"])
    return markdown(["run", "held-out loss", "difference to NSA, %", "tokens/s"], rows) if rows else ""


def retrieval_table(attentions):
    """Scores of NSA beside full attention's: means over seeds, per cent of right answers; a row per task."""
    score = lambda name, task, length: [100 * entry["answers"][task][length]["right"] /
                                        entry["answers"][task][length]["answers"] for entry in attentions[name].values()
                                        if length in entry["answers"][task]]
    first = next(iter(next(iter(attentions.values())).values()))["answers"]
    lengths, rows, missed = list(next(iter(first.values()))), [], 0
    for task in first:
        cells = []
        for length in lengths:
            scores = {name: statistics.mean(found) for name in attentions for found in [score(name, task, length)]
                      if found}
            cells.append(" / ".join(f"{scores[name]:.1f}" if name in scores else "-" for name in ("nsa", "full")))
            missed += len(scores) == 2 and scores["nsa"] < scores["full"] - RETRIEVAL_GOAL
        rows.append([task, *cells])
    table = markdown(["NSA / full, %", *(length_name(int(length)) for length in lengths)], rows)
    return [table, "", f"Cells in which NSA is more than {RETRIEVAL_GOAL:g} point below full attention: {missed}."]


def retrieval_picture(attentions):
    panels = []
    for name in ("nsa", "full"):
        for entry in list(attentions.get(name, {}).values())[:1]:
            cells = {task: {length_name(int(length)): cell["right"] / cell["answers"] for length, cell in row.items()}
                     for task, row in entry["answers"].items()}
            panels.append(HeatMap(f"{TITLES[name]}: right answers, %", "tokens of the sequence", cells))
            depths = {}
            for length, cell in entry["answers"]["single"].items():
                for band, share in enumerate(cell["depths"]):
                    label = f"depth {10 * band} – {10 * band + 10} %"
                    depths.setdefault(label, {})[length_name(int(length))] = share
            panels.append(HeatMap(f"{TITLES[name]}: one needle, by depth, %", "tokens of the sequence", depths))
    return picture(panels, "Retrieval", f"trained on at most {_setting(attentions)} tokens")


def _setting(attentions):
    entry = next(iter(next(iter(attentions.values())).values()))
    return length_name(entry["summary"]["settings"]["context"])


def loss_picture(sizes):
    """Loss in training and on held-out documents, by tokens and by position, four panels per size."""
    panels = []
    for size, attentions in sizes.items():
        training, curves, positions = {}, {}, {}
        for attention, entries in attentions.items():
            for seed, entry in entries.items():
                title = TITLES[attention] + ("" if len(entries) == 1 else f", seed {seed}")
                step_tokens = entry["summary"]["settings"]["step_tokens"]
                training[title] = [(point["tokens"], point["loss"]) for point in entry["curve"]]
                curves[title] = [(one["step"] * step_tokens, one["loss"]) for one in entry["summary"]["evaluations"]]
                positions[title] = [(one["to"], one["loss"]) for one in final(entry)["buckets"]]
        lines = lambda title, x_label, series, names, y_label="nats per token", size=size: Lines(
            f"{size}: {title}", x_label, y_label, series, names, log_y=False, from_zero=False)
        lengths = {to: length_name(to) for line in positions.values() for to, _ in line}
        panels += [lines("training loss", "tokens", training, _tick_names(training)),
                   lines("held-out loss", "tokens trained on", curves, _tick_names(curves)),
                   lines("held-out loss by position", "position in the context, up to", positions, lengths)]
        if set(attentions) == {"nsa", "full"}:
            buckets = [[final(entry)["buckets"] for entry in attentions[name].values()] for name in ("nsa", "full")]
            means = [[statistics.mean(bucket["loss"] for bucket in part) for part in zip(*found)] for found in buckets]
            points = [(bucket["to"], 100 * (a / b - 1)) for bucket, a, b in zip(buckets[0][0], *means)]
            panels.append(lines("NSA's difference to full attention", "position in the context, up to",
                                {"difference, means over seeds": points}, lengths, "%"))
    return picture(panels, "NSA and full attention")


def _tick_names(series):
    """Ticks of about equal distance on a logarithmic axis of tokens."""
    tokens = sorted({x for line in series.values() for x, _ in line})
    ticks, factor = [], (tokens[-1] / tokens[0]) ** (1 / 4) if tokens else 1
    for x in tokens:
        if not ticks or x >= 0.99 * ticks[-1] * factor:
            ticks.append(x)
    return {x: f"{x / 1e6:.2g} M" for x in ticks}


def looks_picture(looks):
    """Branches, distances and neighbours of one model's selection."""
    layers = looks["layers"]
    bars = {f"{index}": layer["shares"] for index, layer in enumerate(layers)}
    chosen = [layer["distances"] for layer in layers if layer["distances"]]
    distances, names = {}, {}
    if chosen:
        mean = lambda key: [(part[0]["to"], 100 * statistics.mean(one[key] for one in part)) for part in zip(*chosen)
                            if part[0]["uniform"] > 0]
        distances = {"selected": mean("share"), "uniform choice": mean("uniform")}
        names = {to: f"{to:.0f}" for to, _ in distances["selected"]}
    common = {}
    for index, layer in enumerate(layers):
        points = [(int(offset), 100 * share) for offset, share in layer["common"].items() if share is not None]
        if points:
            common[f"layer {index}"] = points
    offsets = {int(offset): offset for offset in layers[0]["common"]}
    return picture([StackedBars("Share of the output, by branch", "layer", "share", bars),
                    Lines("Distance of freely selected blocks", "blocks away, up to", "%", distances, names,
                          log_y=False),
                    Lines("Blocks in common with a neighbour", "tokens apart", "%", common, offsets, log_y=False)],
                   "Looks of a trained model", f"{length_name(looks['length'])} tokens")


def looks_table(looks):
    rows = []
    for index, layer in enumerate(looks["layers"]):
        different = layer["different"]
        rows.append([str(index), *(f"{100 * layer['shares'][branch]:.0f}" for branch in layer["shares"]),
                     "-" if different is None else f"{different[1]:.0f} of {different[0]:.0f}",
                     "-" if layer["common"]["1"] is None else f"{100 * layer['common']['1']:.0f}"])
    return markdown(["layer", "compressed, %", "selected, %", "window, %",
                     f"different blocks of {looks['group']} neighbours", "in common with the next query, %"], rows)


def report(results):
    """(Markdown, {file name: SVG}) of all that is complete."""
    runs, pictures = results["runs"], {}
    lines = ["# Results of bench/quality.py", "", loss_table(runs), ""]
    sizes = pairs_of(runs, "train")
    for size, attentions in sizes.items():
        lines += [*comparison(size, attentions), ""]
    changes = changes_table(runs)
    if changes:
        lines += ["## Changes of NSA", "", changes, ""]
    if sizes:
        pictures["loss.svg"] = loss_picture(sizes)
    for attentions in pairs_of(runs, "retrieval").values():
        lines += ["## Retrieval", "", *retrieval_table(attentions), ""]
        pictures["retrieval.svg"] = retrieval_picture(attentions)
    for name, entry in runs.items():
        if entry["program"] == "looks" and entry["status"] == "complete":
            lines += [f"## {name}", "", looks_table(entry["looks"]), ""]
            pictures[f"{name}.svg"] = looks_picture(entry["looks"])
    lines += [f"{name}: {entry['status']}" for name, entry in runs.items() if entry["status"] != "complete"]
    return "\n".join(lines).rstrip() + "\n", pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the --out of bench/quality.py")
    folder = parser.parse_args().folder
    path = folder / "results.json"
    if not path.exists():
        sys.exit(f"quality_report.py: error: found no {path}, expected the results of bench/quality.py")
    text, pictures = report(json.loads(path.read_text()))
    (folder / "report.md").write_text(text)
    for name, content in pictures.items():
        (folder / name).write_text(content)
    print(text, end="")


if __name__ == "__main__":
    main()
