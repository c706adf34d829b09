"""Training sequences ahead of their use, made by a thread or by processes."""

import collections
import concurrent.futures
import multiprocessing

from token_files import join

_source = None  # of a process that makes sequences


def _keep(source):
    global _source
    _source = source


def _batches(source, micros):
    return [join([source.sequence(index) for index in micro]) for micro in micros]


def _batches_in_process(micros):
    return _batches(_source, micros)


class Loader:
    """The batches of steps `begin` to `end`, in order. `micros_of(step)` lists the indices of each batch's sequences.
    With `workers` that many processes call source.sequence(), which needs nothing but its index."""

    def __init__(self, source, micros_of, begin, end, workers=0):
        self._micros_of, self._next, self._end = micros_of, begin, end
        if workers:
            # Not forked: a process with CUDA or threads cannot be.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_keep, initargs=(source,))
            self._make = _batches_in_process
        else:
            self._pool = concurrent.futures.ThreadPoolExecutor(1)
            self._make = lambda micros: _batches(source, micros)
        self._ahead = max(2, 2 * workers)
        self._futures = collections.deque()

    def __enter__(self):
        self._fill()
        return self

    def __exit__(self, *_):
        for future in self._futures:
            future.cancel()
        self._pool.shutdown()

    def _fill(self):
        while self._next < self._end and len(self._futures) < self._ahead:
            self._futures.append(self._pool.submit(self._make, self._micros_of(self._next)))
            self._next += 1

    def next(self):
        batches = self._futures.popleft().result()
        self._fill()
        return batches
