#!/usr/bin/env python3
"""Merges the flight records of a job's ranks and says which rank was behind.

    flight_record.py FOLDER [--last N]

FOLDER holds the files that ranks write when a communicator fails, or after SIGUSR1, if the environment variable
CPNSA_TRACE names it. Prints, for each group of ranks, the last operations of every rank on one time line, and the ranks
at fault: those without a file (killed, stopped, or never in a wait), or else those with the fewest operations.
"""

import argparse
import collections
import json
import pathlib
import sys


def read_groups(folder):
    """{group: {rank: record}} of all files of the folder."""
    groups = collections.defaultdict(dict)
    for path in sorted(folder.glob("cpnsa-*-rank*.json")):
        try:
            record = json.loads(path.read_text())
            groups[record["group"]][record["rank"]] = record
        except (ValueError, KeyError) as error:
            print(f"flight_record.py: {path}: found {error}, expected a whole record", file=sys.stderr)
    return groups


def describe(operation):
    """The same words as in the library's errors."""
    text = operation["name"] + (f" of {operation['purpose']}" if operation["purpose"] else "")
    if not operation["call"]:
        return text
    layer = f" of layer {operation['layer']}" if operation["layer"] else ""
    number = f", call {operation['number']}" if operation["number"] else ""
    return f"{operation['call']}{layer}{number}, operation {operation['operation']}: {text}"


def progress(record, time):
    """(operations finished, operations begun) of the communicator by this time."""
    finished = [operation["sequence"] for operation in record["operations"]
                if operation["end"] is not None and operation["end"] <= time]
    begun = [operation["sequence"] for operation in record["operations"] if operation["begin"] <= time]
    return max(finished, default=0), max(begun, default=0)


def at_fault(records):
    """The ranks that the others waited for, and how that shows."""
    ranks = max(record["ranks"] for record in records.values())
    missing = [rank for rank in range(ranks) if rank not in records]
    if missing:
        return missing, "no record: killed, stopped, or busy outside of the library"
    # A rank that was late may have gone on since, so the first rank's failure is the time that counts.
    first = min(record["time"] for record in records.values())
    reached = {rank: progress(record, first) for rank, record in records.items()}
    least, most = min(reached.values()), max(reached.values())
    if least == most:
        return [], "all ranks were in the same operation"
    behind = [rank for rank in sorted(records) if reached[rank] == least]
    return behind, f"{least[0]} operations finished, {least[1]} begun; others up to {most[0]} and {most[1]}"


def print_group(group, records, last):
    some = next(iter(records.values()))
    print(f"group {group}: {len(records)} of {some['ranks']} ranks, {some['transport']}")
    for rank in sorted(records):
        record = records[rank]
        print(f"  rank {rank} ({record['host']}, process {record['process']}): {record['reason']}")
    lines = [(operation["begin"], rank, operation) for rank in records
             for operation in records[rank]["operations"][-last:]]
    start = min((begin for begin, _, _ in lines), default=0)
    for begin, rank, operation in sorted(lines, key=lambda line: line[:2]):
        took = "not finished" if operation["end"] is None else f"{(operation['end'] - begin) * 1e3:.3f} ms"
        print(f"  {begin - start:12.6f} s  rank {rank:<4} #{operation['sequence']:<6} {describe(operation)}"
              f"  ({operation['sent']} bytes sent, {operation['received']} received; {took})")
    ranks, why = at_fault(records)
    if ranks:
        print(f"  behind: {', '.join(f'rank {rank}' for rank in ranks)} ({why})")
    else:
        print(f"  behind: none ({why})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--last", type=int, default=8, help="operations shown per rank (default: 8)")
    arguments = parser.parse_args()
    groups = read_groups(arguments.folder)
    if not groups:
        sys.exit(f"flight_record.py: {arguments.folder}: found no records, expected files cpnsa-*-rank*.json")
    for group in sorted(groups):
        print_group(group, groups[group], max(1, arguments.last))


if __name__ == "__main__":
    main()
