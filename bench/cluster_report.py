"""The results of bench/cluster.py as a Markdown table and as a picture."""

from svg import Lines
from tables import PASSES, STAGES, length_name, markdown


def ideal_of(row, rows, direction):
    """Seconds of the step if ranks cost nothing: the time of the fewest ranks that ran it, divided among this row's."""
    alike = [other for other in rows if direction in other["bench"]["rows"][0] and
             all(other[key] == row[key] for key in ("tokens", "documents", "selection"))]
    fewest = min(other["ranks"] for other in alike)
    seconds = min(step_of(other, direction)["seconds"] for other in alike if other["ranks"] == fewest)
    return seconds * fewest / row["ranks"]


def step_of(row, direction):
    return row["bench"]["rows"][0].get(direction)


def exposed_seconds(step):
    """The time of the step beyond its computing stages: communication that nothing hides, and waiting."""
    computing = sum(step["stage_seconds"][stage] for stage in STAGES if stage != "exchange")
    return max(0.0, step["seconds"] - computing)


def scaling_table(rows):
    head = ["tokens", "documents", "selection", "ranks", "partition", "exchange", "pass", "ms", "of ideal",
            "exposed ms", "wire ms", "moved MiB", "peak GiB per rank"]
    lines = []
    for row in sorted(rows, key=lambda r: (r["tokens"], r["documents"], r["selection"], r["ranks"], r["partition"],
                                           r["exchange"])):
        entry = row["bench"]["rows"][0]
        chosen = entry["exchange"] if row["exchange"] == "auto" else row["exchange"]
        for direction in PASSES:
            step = step_of(row, direction)
            if not step:
                continue
            lines.append([length_name(row["tokens"]), str(row["documents"]), row["selection"], str(row["ranks"]),
                          row["partition"], f"auto: {chosen}" if row["exchange"] == "auto" else chosen, direction,
                          f"{1e3 * step['seconds']:.2f}",
                          f"{100 * ideal_of(row, rows, direction) / step['seconds']:.0f} %",
                          f"{1e3 * exposed_seconds(step):.2f}", f"{1e3 * step['stage_seconds']['exchange']:.2f}",
                          f"{step['bytes_received'] / 2**20:.1f}",
                          f"{(entry['tensor_bytes'] + entry['workspace_bytes']) / 2**30:.2f}"])
    return markdown(head, lines)


def wrong(results):
    """True if anything that ran failed."""
    return any(layer["ran"] and not layer["same_indices"] for layer in results["layers"]) or any(
        "out of time" not in failure["reason"] and failure["reason"] != "not built" for failure in results["failures"])


def report(results):
    hardware = sorted({row["bench"]["hardware"] for row in results["rows"]})
    layers = results["layers"]
    right = sum(layer["same_indices"] for layer in layers)
    parts = [f"{results['date']}, up to {results['ranks']} ranks, `{results['launch']}`", "; ".join(hardware),
             f"Layers with the indices of one rank: {right} of {len(layers)}."]
    for entry in results["suites"]:
        parts.append(f"{entry['suite']}, ranks: {entry['ranks']}: {'passed' if entry['passed'] else 'FAILED'}.")
    for entry in results["examples"]:
        parts.append(f"{entry['example']}, ranks: {entry['ranks']}: "
                     + (f"{entry['seconds']:.0f} s." if entry["passed"] else "FAILED."))
    if results["rows"]:
        parts.append(scaling_table(results["rows"]))
        parts.append("of ideal: the time of the fewest ranks that ran it, shared out; exposed: beyond the computing "
                     "stages; wire: sum of all transfers, hidden or not; moved: all ranks together.")
    if results["failures"]:
        parts.append("Not run, or failed:\n\n" + "\n".join(f"- {failure['what']}: {failure['reason']}"
                                                        for failure in results["failures"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def scaling_panels(results):
    """Milliseconds against ranks, a panel per pass and a line per length, with the partition that balances it; the
    ideal is the time of the fewest ranks, divided among more."""
    panels = []
    for direction in PASSES:
        series, names = {}, {}
        for row in sorted(results["rows"], key=lambda r: r["ranks"]):
            step = step_of(row, direction)
            if not step or row["exchange"] != "auto" or row["partition"] == "contiguous":
                continue
            name = f"{row['documents']} x {length_name(row['tokens'] // row['documents'])} {row['selection']}"
            series.setdefault(name, []).append((row["ranks"], 1e3 * step["seconds"]))
            names[row["ranks"]] = str(row["ranks"])
        ideals = {name: [(ranks, line[0][1] * line[0][0] / ranks) for ranks, _ in line]
                  for name, line in series.items()}
        panels.append(Lines(direction, "ranks", "milliseconds", series, names, ideals=ideals))
    return panels
