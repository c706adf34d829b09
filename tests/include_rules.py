#!/usr/bin/env python3
"""Holds the include rules of DESIGN.md: include_rules.py ROOT. A file belongs to the unit that is the longest prefix of
its path, and may include headers of its own unit and of those that the unit names."""

import re
import sys
from pathlib import Path

PUBLIC = "include/cpnsa"
COLLECTIVES = "comm/all_reduce"
CUDA_SHARED = [PUBLIC, "include/cpnsa/cuda", "kernels/cuda/common", "kernels/cuda/schedule", "kernels/cuda/ptx"]
UNITS = {
    PUBLIC: [],
    "include/cpnsa/cuda": [PUBLIC],
    "include/cpnsa/mpi": [PUBLIC],
    "include/cpnsa/nccl": [PUBLIC],
    "src": [PUBLIC, "src/planning"],
    "src/planning": [PUBLIC],
    "src/layer": [PUBLIC, "src/planning", COLLECTIVES],
    "src/wire": [PUBLIC, "src/planning", "src/layer"],
    "src/forecast": [PUBLIC, "src/planning", "src/layer", "src/inference"],
    "src/steps": [PUBLIC, "src/planning", "src/layer", "src/wire", COLLECTIVES],
    "src/inference": [PUBLIC, "src/planning", "src/layer"],
    "src/decoder.cpp": [PUBLIC, "src/inference", "src/layer"],
    "src/attention.cpp": [PUBLIC, "src/planning", "src/layer", "src/wire", "src/steps"],
    # Algorithms over the interface of Communicator, which know no transport.
    COLLECTIVES: [PUBLIC],
    # Transports know neither each other nor a device, devices neither each other nor a transport.
    "comm": [PUBLIC],
    "comm/callbacks": [PUBLIC, "comm"],
    "comm/mpi": [PUBLIC, "include/cpnsa/mpi", "comm"],
    "comm/nccl": [PUBLIC, "include/cpnsa/nccl", "comm"],
    "comm/threads": [PUBLIC, "comm"],
    "kernels/cpu": [PUBLIC],
    # Siblings of the CUDA device know what they share, never each other.
    "kernels/cuda/ptx": [],
    "kernels/cuda/common": CUDA_SHARED,
    "kernels/cuda/schedule": CUDA_SHARED,
    "kernels/cuda/decode": CUDA_SHARED,
    "kernels/cuda/sm80": CUDA_SHARED,
    "kernels/cuda/sm90": CUDA_SHARED,
    "kernels/cuda": [*CUDA_SHARED, "kernels/cuda/decode", "kernels/cuda/sm80", "kernels/cuda/sm90"],
    # The doors to the library know what a build may not have through backends/ alone.
    "backends": [PUBLIC],
    "backends/with": [PUBLIC, "include/cpnsa/cuda", "include/cpnsa/mpi", "include/cpnsa/nccl", "backends"],
    "backends/without": [PUBLIC, "backends"],
    "c": [PUBLIC, "backends"],
    "tools": [PUBLIC, "backends"],
}
SUFFIXES = (".c", ".cpp", ".h", ".hpp", ".cu", ".cuh")
# Headers of CUDA, MPI and NCCL, and the units that may include them.
LIBRARIES = re.compile(r"(cuda|cub|cublas|curand|cooperative_groups|mma\.h|thrust|mpi|nccl)")
LIBRARY_UNITS = re.compile(r"(include/cpnsa|comm)/(cuda|mpi|nccl)|kernels/cuda|backends/with")


def unit_of(path):
    path = re.sub(r"^(comm/all_reduce)\.[ch]pp$", r"\1", path)
    while path not in UNITS and path != ".":
        path = str(Path(path).parent)
    return path


def main(root):
    problems, counts = [], dict.fromkeys(UNITS, 0)
    for top in sorted({unit.split("/")[0] for unit in UNITS}):
        for path in sorted(path for path in (root / top).rglob("*") if path.suffix in SUFFIXES):
            file = path.relative_to(root).as_posix()
            unit = unit_of(file)
            for header in re.findall(r'^ *# *include *[<"](.*)[>"]', path.read_text(encoding="utf-8"), re.MULTILINE):
                counts[unit] += 1
                target = next((p for p in ("include/" + header, header) if (root / p).exists()), None)
                if target and unit_of(target) not in (unit, *UNITS[unit]):
                    problems.append(f"{file}: found {header}, expected headers of {', '.join([unit, *UNITS[unit]])}")
                if not target and LIBRARIES.match(header) and not LIBRARY_UNITS.match(unit):
                    problems.append(f"{file}: found {header}, expected none of CUDA, MPI or NCCL in {unit}")
    problems += [f"{unit}: found no includes, expected a unit of the product" for unit in UNITS if not counts[unit]]
    print("\n".join(problems) or f"{sum(counts.values())} includes keep the rules")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
