"""Files of tokens, memory-mapped, and the packed sequences that training and evaluation read from them.

A folder of tokens holds `train.bin` and `held_out.bin`, tokens of one type after another; `train.npy` and
`held_out.npy`, int64 [documents + 1], the first token of every document and the end of the last; and `tokens.json`.
Every document begins with the token BOUNDARY, so the token that a document's last one predicts is a BOUNDARY too.
"""

import json
import pathlib

import numpy as np

BOUNDARY = 0
SPLITS = ("train", "held_out")


class DataError(ValueError):
    """Files of tokens that cannot be used: found, expected, where."""


class TokenFile:
    """The documents of one split."""

    def __init__(self, folder: pathlib.Path, split: str):
        description = json.loads((folder / "tokens.json").read_text())
        self._folder, self._split = folder, split
        self.vocabulary = description["vocabulary"]
        self.tokens = np.memmap(folder / f"{split}.bin", dtype=description["dtype"], mode="r")
        self.bounds = np.load(folder / f"{split}.npy")
        if len(self.bounds) < 2 or self.bounds[0] != 0 or self.bounds[-1] != len(self.tokens):
            raise DataError(f"{folder / split}.npy: found bounds that do not end at the {len(self.tokens)} tokens of "
                            f"{split}.bin, expected one folder's files, written by prepare.py")

    def __reduce__(self):
        return TokenFile, (self._folder, self._split)  # a process that gets the object maps the files

    @property
    def lengths(self):
        return np.diff(self.bounds)


class Batch:
    """One packed sequence: tokens and targets int64 [T]; bounds of the documents in it; weights float64 [T] of the
    targets' losses, or None for equal ones. The weights of a training sequence add up to 1."""

    def __init__(self, tokens, targets, bounds, weights=None):
        self.tokens, self.targets, self.weights = tokens, targets, weights
        self.bounds = [int(bound) for bound in bounds]

    @property
    def previous(self):
        """The token before each token; BOUNDARY before a document's first."""
        previous = np.empty_like(self.tokens)
        previous[1:] = self.tokens[:-1]
        previous[self.bounds[:-1]] = BOUNDARY
        return previous


def join(batches):
    """Several packed sequences as one."""
    offsets = np.cumsum([0] + [len(batch.tokens) for batch in batches])
    bounds = [0] + [int(offset) + bound for offset, batch in zip(offsets, batches) for bound in batch.bounds[1:]]
    weights = None if batches[0].weights is None else np.concatenate([batch.weights for batch in batches])
    return Batch(np.concatenate([batch.tokens for batch in batches]),
                 np.concatenate([batch.targets for batch in batches]), bounds, weights)


class PackedStream:
    """All documents in a random order per epoch, one after another, cut every `context` tokens into pieces, and the
    pieces in a random order. Sequence i is a function of the seed and i alone, so a resumed run needs no state. The
    part of a document after a cut is a document of its own."""

    def __init__(self, file: TokenFile, context: int, seed: int):
        self.file, self.context, self.seed = file, context, seed
        self.per_epoch = (len(file.tokens) - 1) // context  # a sequence's last target is one token further
        if self.per_epoch < 1:
            raise DataError(f"found {len(file.tokens)} tokens, expected more than the context of {context}")
        self._epoch = None

    def sequence(self, index: int) -> Batch:
        epoch, within = divmod(index, self.per_epoch)
        self._shuffle(epoch)
        return self.piece(epoch, int(self._pieces[within]))

    def _shuffle(self, epoch):
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._order = np.argsort(generator.random(len(self.file.bounds) - 1), kind="stable")
            self._starts = np.concatenate(([0], np.cumsum(self.file.lengths[self._order])))
            self._pieces = np.argsort(generator.random(self.per_epoch), kind="stable")
            self._epoch = epoch

    def piece(self, epoch: int, within: int) -> Batch:
        """A piece of an epoch's documents, by its place in their order."""
        self._shuffle(epoch)
        begin, end = within * self.context, (within + 1) * self.context
        document = int(np.searchsorted(self._starts, begin, side="right")) - 1
        parts, bounds, position = [], [0], begin
        while position < end + 1:
            first = int(self.file.bounds[self._order[document]]) + position - int(self._starts[document])
            upto = min(int(self._starts[document + 1]), end + 1)
            parts.append(self.file.tokens[first:first + upto - position])
            position, document = upto, document + 1
            if position < end:
                bounds.append(position - begin)
        stream = np.concatenate(parts).astype(np.int64)
        return Batch(stream[:-1], stream[1:], [*bounds, self.context])


def held_out_batches(file: TokenFile, context: int, tokens: int, batch_tokens: int):
    """Batches of held-out documents, cut every `context` tokens: whole pieces first, then the ends of documents and
    short ones, in the file's order, until `tokens` are reached. A piece's last target is the token after it, which
    after a document is a BOUNDARY."""
    pieces = [(begin, min(context, end - begin)) for first, end in zip(file.bounds[:-1].tolist(),
                                                                       file.bounds[1:].tolist())
              for begin in range(first, end, context)]
    batches, batch, size, total = [], [], 0, 0
    for begin, length in sorted(pieces, key=lambda piece: piece[1] < context):
        if total and total + length > tokens:
            continue
        if size and size + length > batch_tokens:
            batches.append(join(batch))
            batch, size = [], 0
        piece = np.asarray(file.tokens[begin:begin + length]).astype(np.int64)
        after = file.tokens[begin + length] if begin + length < len(file.tokens) else BOUNDARY
        batch.append(Batch(piece, np.append(piece[1:], np.int64(after)), [0, length]))
        size, total = size + length, total + length
    batches.append(join(batch))
    return batches
