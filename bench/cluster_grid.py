"""The points that bench/cluster.py measures, the most informative first, since time may run out."""

import dataclasses

from tables import length_name

K = 1 << 10


@dataclasses.dataclass(frozen=True)
class Point:
    tokens: int
    documents: int
    selection: str
    ranks: int
    partition: str
    exchange: str
    backward: bool = True
    tiny: bool = False

    def title(self):
        return (f"{length_name(self.tokens)} tokens, documents: {self.documents}, {self.selection}, "
                f"ranks: {self.ranks}, {self.partition}, {self.exchange}")

    def describe(self):
        described = dataclasses.asdict(self)
        del described["tiny"]
        return described

    def flags(self):
        shape = ["--heads", "4", "--kv-heads", "2", "--dk", "16", "--dv", "16", "--hidden", "16", "--window", "64",
                 "--select-block", "32", "--select-count", "4", "-n", "1", "-w", "0"]
        # The deadline is within a step's limit, and its message says why.
        flags = shape if self.tiny else ["-n", "5", "-w", "2", "--deadline", "60"]
        flags = flags + ["-b", str(self.tokens), "-e", str(self.tokens), "--documents", str(self.documents),
                         "--selection", self.selection, "--partition", self.partition, "--exchange", self.exchange]
        return flags if self.backward else [*flags, "--no-backward"]


def grid(counts, tiny):
    """`counts`: numbers of ranks, ascending from 1. On a GPU: one document of 128K tokens with every partition and
    exchange, packed documents of 8K and 16K, and a million tokens forward; `tiny` is the same grid at no cost."""
    most, scale = counts[-1], 256 if tiny else 1
    points = []

    def add(tokens, documents, ranks, partition, exchange, backward=True):
        for selection in ("local",) if tiny else ("random", "local"):
            points.append(Point(tokens // scale, documents, selection, ranks, partition, exchange, backward, tiny))

    for ranks in dict.fromkeys([most, *counts]):
        add(128 * K, 1, ranks, "zigzag", "auto")
    for documents, length in ((16, 8 * K), (8, 16 * K)):
        for ranks in dict.fromkeys([1, most]):
            add(documents * length, documents, ranks, "zigzag_per_document", "auto")
    if most > 1:
        for partition in ("zigzag", "contiguous"):
            for exchange in ("fetch", "gather", "auto"):
                if (partition, exchange) != ("zigzag", "auto"):
                    add(128 * K, 1, most, partition, exchange)
        for documents, length in ((16, 8 * K), (8, 16 * K)):
            add(documents * length, documents, most, "contiguous", "auto")
    for ranks in dict.fromkeys([most, 1]):  # half a minute each
        add(1024 * K, 1, ranks, "zigzag", "auto", backward=False)
    return points
