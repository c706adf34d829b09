#!/usr/bin/env python3
"""Writes the measurements that forecasts are made from, src/forecast/h200.hpp, from docs/performance/h200-128.json:
forecast_tables.py [--check]. With --check it only compares them."""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "docs/performance/h200-128.json"
FORWARD_ALONE = "docs/performance/h200-128-forward.json"
TARGET = ROOT / "src/forecast/h200.hpp"
KINDS = ["compress", "compressed", "importance", "selected", "window", "gate"]
NONE = dict.fromkeys(KINDS, 0)  # of a length that was measured without a backward


def seconds(stages):
    return "{" + ", ".join(f"{stages[kind]:.6e}" for kind in KINDS) + "}"


def table(name, selection):
    rows = {row["tokens"]: row["nsa"][selection] for row in json.loads((ROOT / SOURCE).read_text())["rows"]}
    alone = {row["tokens"]: row["nsa"][selection] for row in json.loads((ROOT / FORWARD_ALONE).read_text())["rows"]}
    lines = [f"inline constexpr MeasuredLength {name}[] = {{"]
    for tokens in sorted(rows.keys() | alone.keys()):
        forward = rows.get(tokens, alone.get(tokens))["forward"]["stage_seconds"]
        backward = rows[tokens]["backward"]["stage_seconds"] if "backward" in rows.get(tokens, {}) else NONE
        lines += [f"    {{{tokens},", f"     {seconds(forward)},", f"     {seconds(backward)}}},"]
    return [*lines, "};"]


def text():
    return "\n".join([
        "#pragma once",
        "",
        f"// Written by bench/forecast_tables.py from {SOURCE} and",
        f"// {FORWARD_ALONE}: one H200, bf16, 64 query and 4 KV heads of 128, one document. Seconds:",
        "// compress, compressed, importance, selected, window, gate; 0: not measured.",
        "",
        '#include "cpnsa/forecast.hpp"',
        "",
        "namespace cpnsa::forecasts {",
        "",
        "// clang-format off",
        *table("h200_random", "random"),
        "",
        *table("h200_local", "local"),
        "// clang-format on",
        "",
        "}  // namespace cpnsa::forecasts",
        "",
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    wanted = text()
    if not parser.parse_args().check:
        TARGET.write_text(wanted, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{TARGET}: found other numbers than those of {SOURCE}, expected bench/forecast_tables.py to have written it")
    return 1


if __name__ == "__main__":
    sys.exit(main())
