"""Retrieval tasks, in the manner of RULER (arXiv 2404.06654): sequences whose end asks about what is before it.

A sample is a function of its task, length, seed and index. Its last tokens are a question and its answers; a model is
right about an answer if it predicts it from all tokens before it. The tasks need no position encoding: what belongs
together is adjacent, and answers are in an order that does not depend on where they were found.
"""

import dataclasses
import hashlib
from typing import List

import numpy as np

from token_files import BOUNDARY, Batch, join

# Marks, in front of what they announce.
NEEDLE, ASK, ASSIGN, TRACK, COPY, END, COMMON, FREQUENT = range(1, 9)
KEYS, VALUES, WORDS = range(16, 144), range(144, 272), range(272, 512)
VOCABULARY = 512
SHORTEST = 64  # the length from which every task fits


@dataclasses.dataclass
class Sample:
    """tokens [length], and the positions of the answers in it."""

    tokens: np.ndarray
    answers: List[int]


def generator_of(*parts):
    """A random generator of these values."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _draw(random, tokens, count):
    """`count` different tokens of a range."""
    return [int(tokens[i]) for i in np.argsort(random.random(len(tokens)), kind="stable")[:count]]


def _values(random, count):
    return [VALUES[int(share * len(VALUES))] for share in random.random(count)]


def _words(random, count, without=None):
    """Words with repetition, in which one does not occur."""
    words = (random.random(count) * (len(WORDS) - (without is not None))).astype(np.int64) + WORDS.start
    return words if without is None else words + (words >= without)


def _lay(random, length, pieces, question, answers, depth=None, without=None):
    """Filler words with the pieces in it, in their order, and at the end the question, whose `answers` are counted from
    its end. The first piece is at `depth`, a share of the filler, if that is given."""
    room = length - 1 - len(question) - sum(map(len, pieces))
    if room < 0:
        raise ValueError(f"length: found {length}, expected at least {length - room} for this task")
    gaps = np.sort((random.random(len(pieces)) * (room + 1)).astype(np.int64))
    if depth is not None:
        gaps[0] = min(room, int(depth * room))
    filler, parts, begin = _words(random, room, without), [np.array([BOUNDARY])], 0
    for gap, piece in zip(gaps, pieces):
        parts += [filler[begin:gap], np.array(piece)]
        begin = gap
    tokens = np.concatenate([*parts, filler[begin:], np.array(question)]).astype(np.int64)
    return Sample(tokens, [length - answer for answer in answers])


def single(random, length, depth=None):
    """One needle, a key and its value; the key is asked."""
    [key], [value] = _draw(random, KEYS, 1), _values(random, 1)
    return _lay(random, length, [[NEEDLE, key, value]], [ASK, key, value], [1], depth)


def multi_key(random, length, depth=None):
    """A needle per 64 tokens, at least 4 and at most 100; one key is asked."""
    keys = _draw(random, KEYS, min(100, max(4, length // 64)))
    values, asked = _values(random, len(keys)), int(random.random() * len(keys))
    pieces = [[NEEDLE, key, value] for key, value in zip(keys, values)]
    return _lay(random, length, pieces, [ASK, keys[asked], values[asked]], [1])


def multi_value(random, length, depth=None):
    """Four needles of one key among four of other keys; its values are asked, ascending."""
    key, *others = _draw(random, KEYS, 5)
    values = sorted(_draw(random, VALUES, 4))
    pieces = [[NEEDLE, key, value] for value in values]
    pieces += [[NEEDLE, other, value] for other, value in zip(others, _values(random, 4))]
    pieces = [pieces[i] for i in np.argsort(random.random(len(pieces)))]
    return _lay(random, length, pieces, [ASK, key, *values], [4, 3, 2, 1])


def multi_query(random, length, depth=None):
    """Eight needles; four keys are asked, in a random order."""
    keys = _draw(random, KEYS, 8)
    values = _values(random, len(keys))
    question = []
    for asked in np.argsort(random.random(len(keys)))[:4]:
        question += [ASK, keys[asked], values[asked]]
    pieces = [[NEEDLE, key, value] for key, value in zip(keys, values)]
    return _lay(random, length, pieces, question, [10, 7, 4, 1])


def variable_tracking(random, length, depth=None):
    """Two chains of five variables: the first has a value, each other one is assigned the variable before it. All
    variables of one value are asked, in the chain's order."""
    keys, (asked, other) = _draw(random, KEYS, 10), _draw(random, VALUES, 2)
    left = []
    for chain, value in ((keys[:5], asked), (keys[5:], other)):
        left.append([[ASSIGN, variable, source] for variable, source in zip(chain, [value, *chain])])
    turns = np.argsort(random.random(10)) < 5  # the chain that goes on
    pieces = [left[0 if turn else 1].pop(0) for turn in turns]
    return _lay(random, length, pieces, [TRACK, asked, *keys[:5]], [5, 4, 3, 2, 1])


def _counted(random, length, asked, counts, mark):
    """Words of which some appear `counts` times and 40 others about equally often; the first are asked."""
    room = length - 2 - len(asked)
    others = [word for word in _draw(random, WORDS, 40 + len(asked)) if word not in asked][:40]
    counts = [max(2, int(share * room)) for share in counts]
    body = [word for word, count in zip(asked, counts) for _ in range(count)]
    body += [others[i % len(others)] for i in range(room - len(body))]
    body = np.array(body)[np.argsort(random.random(len(body)), kind="stable")]
    tokens = np.concatenate([[BOUNDARY], body, [mark], asked]).astype(np.int64)
    return Sample(tokens, [length - len(asked) + i for i in range(len(asked))])


def common_words(random, length, depth=None):
    """Four words are a tenth of the text each, 40 others share the rest; the four are asked, ascending."""
    return _counted(random, length, sorted(_draw(random, WORDS, 4)), [0.1] * 4, COMMON)


def frequent_words(random, length, depth=None):
    """Three words are 25, 15 and 9 % of the text; they are asked, the most frequent first."""
    return _counted(random, length, _draw(random, WORDS, 3), [0.25, 0.15, 0.09], FREQUENT)


def copying(random, length, depth=None):
    """A passage of 16 different values between marks, asked token by token."""
    passage = _draw(random, VALUES, 16)
    return _lay(random, length, [[COPY, *passage, END]], [COPY, *passage], list(range(16, 0, -1)), depth)


def induction(random, length, depth=None):
    """A word that appeared once appears again; the word that followed it is asked."""
    first, second = _draw(random, WORDS, 2)
    return _lay(random, length, [[first, second]], [first, second], [1], depth, without=first)


TASKS = {task.__name__: task for task in (single, multi_key, multi_value, multi_query, variable_tracking, common_words,
                                          frequent_words, copying, induction)}
#: Tasks that have one place that is asked about, whose depth can be chosen.
WITH_DEPTH = ("single", "copying", "induction")


def sample(task, length, seed, index, depth=None):
    return TASKS[task](generator_of(task, length, seed, index), length, depth)


def batch_of(samples):
    """Samples as the documents of one packed sequence. Each has the same weight, and so have its answers."""
    documents = []
    for one in samples:
        weights = np.zeros(len(one.tokens))
        weights[np.array(one.answers) - 1] = 1 / (len(one.answers) * len(samples))
        documents.append(Batch(one.tokens, np.append(one.tokens[1:], BOUNDARY), [0, len(one.tokens)], weights))
    return join(documents)


class TaskStream:
    """Training sequences of `context` tokens, each of samples of one length. The longest length grows from SHORTEST to
    the context during the first 60 % of the `total` sequences."""

    def __init__(self, context, total, seed, tasks=tuple(TASKS)):
        if context < SHORTEST or context & (context - 1):
            raise ValueError(f"context: found {context}, expected a power of two of at least {SHORTEST}")
        self.context, self.total, self.seed, self.tasks = context, total, seed, tasks
        self._doublings = (context // SHORTEST).bit_length() - 1

    def sequence(self, index):
        random = generator_of("sequence", self.seed, index)
        reached = min(self._doublings, int((self._doublings + 1) * index / (0.6 * self.total)))
        length = SHORTEST << int(random.random() * (reached + 1))
        chosen = (random.random(self.context // length) * len(self.tasks)).astype(np.int64)
        return batch_of([sample(self.tasks[task], length, f"train {self.seed}", f"{index} {place}")
                         for place, task in enumerate(chosen)])
