"""The results as Markdown tables."""

from full_attention import TITLES

PASSES = ("forward", "backward")
STAGES = ("compress", "compressed", "importance", "exchange", "selected", "window", "gate")


def seconds_of(entry, direction):
    """The seconds of one implementation at one length; None if it was not timed."""
    return entry.get(direction, {}).get("seconds")


def length_name(tokens):
    if tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    return f"{tokens >> 10}K" if tokens % (1 << 10) == 0 else str(tokens)


def _milliseconds(seconds):
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


def _ratio(slow, fast):
    return "-" if slow is None or fast is None else f"{slow / fast:.2f}x"


def markdown(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths)) + " |"
    return "\n".join([line(head), "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *map(line, rows)])


def ratio_table(results):
    """Milliseconds of everything and our ratio to each full attention, a row for each length and direction."""
    full = results["setting"]["full"]
    selections = results["setting"]["selections"]
    head = ["tokens", "pass"] + [f"{TITLES[name]} ms" for name in full]
    for selection in selections:
        head += [f"NSA {selection} ms"] + [f"to {TITLES[name]}" for name in full]
    rows = []
    for row in results["rows"]:
        for direction in PASSES:
            times = [seconds_of(row["full"].get(name, {}), direction) for name in full]
            ours = [seconds_of(row["nsa"].get(selection, {}), direction) for selection in selections]
            if all(time is None for time in times + ours):
                continue
            cells = [length_name(row["tokens"]), direction] + [_milliseconds(time) for time in times]
            for own in ours:
                cells += [_milliseconds(own)] + [_ratio(time, own) for time in times]
            rows.append(cells)
    return markdown(head, rows)


def stage_table(results):
    """Our stages in milliseconds, with the whole step's rate and memory."""
    head = ["tokens", "pass", "selection", *STAGES, "total", "TFLOP/s", "peak GiB", "blocks of 16 queries"]
    rows = []
    for row in results["rows"]:
        for selection, entry in row["nsa"].items():
            for direction in PASSES:
                if seconds_of(entry, direction) is None:
                    continue
                one = entry[direction]
                peak = (entry["tensor_bytes"] + entry["workspace_bytes"]) / 2**30
                shared = f"{entry['distinct_blocks_per_16_queries']:.0f} of {entry['picks_per_16_queries']:.0f}"
                rows.append(
                    [length_name(row["tokens"]), direction, selection]
                    + [f"{1e3 * one['stage_seconds'][stage]:.3f}" for stage in STAGES]
                    + [_milliseconds(one["seconds"]), f"{one['tflops_per_second']:.3g}", f"{peak:.1f}", shared]
                )
    return markdown(head, rows)


def failures(results):
    """A line for each dash of the tables."""
    lines = []
    for row in results["rows"]:
        named = {**{TITLES[n]: e for n, e in row["full"].items()}, **{f"NSA {s}": e for s, e in row["nsa"].items()}}
        for name, entry in named.items():
            for place, part in [("", entry), *((f" {d}", entry.get(d, {})) for d in PASSES)]:
                if "failed" in part:
                    lines.append(f"- {length_name(row['tokens'])} {name}{place}: {part['failed']}")
    return "\n".join(lines)


def shape_of(setting):
    dims = f"d_qk {setting['dk']}, d_v {setting['dv']}"
    return f"{setting['heads']} query heads, {setting['kv_heads']} KV heads, {dims}"


def report(results):
    machine, setting, ceilings = results["machine"], results["setting"], results["ceilings"]
    parts = [f"{results['date']}, commit {results['commit']}; {shape_of(setting)}, bf16, causal, one document"]
    parts.append(", ".join(f"{key} {value}" for key, value in machine.items()))
    if "failed" in ceilings:
        parts.append(f"Ceilings: {ceilings['failed']}")
    elif ceilings:
        parts.append(
            f"Ceilings: {ceilings['product_tflops_per_second']:.0f} TFLOP/s ({ceilings['product']} product), "
            f"{ceilings['copy_terabytes_per_second']:.2f} TB/s (copy of {ceilings['copy']})"
        )
    parts += [ratio_table(results), stage_table(results)]
    reasons = failures(results)
    if reasons:
        parts.append("Not measured:\n\n" + reasons)
    return "\n\n".join(parts) + "\n"
