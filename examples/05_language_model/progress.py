"""Progress of a run: a line per report, and log.csv, a row per step."""

import csv
import json
import os
import pathlib
import time

import torch

COLUMNS = ("step", "tokens", "loss", "gradient_norm", "learning_rate", "tokens_per_second", "mfu", "memory_bytes")
NAME = "log.csv"


class Log:
    """log.csv of a folder. A resumed run drops the rows that it trains again."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        self.path = folder / NAME
        rows = read(folder) if self.path.exists() else []
        rows = [row for row in rows if None not in row.values() and int(row["step"]) < first_step]  # None: cut short
        partial = self.path.with_suffix(".partial")
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)
        self._file = open(self.path, "a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def add(self, rows):
        self._writer.writerows(rows)
        self._file.flush()

    def close(self):
        self._file.close()


def write_json(path: pathlib.Path, value):
    """Replaces the file whole: a run that ends while it writes leaves the one before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def read(folder: pathlib.Path):
    with open(folder / NAME, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Meter:
    """Rates since the last report, and the time that is left. Evaluations and checkpoints are not counted."""

    def __init__(self, device, ranks, peak, first_step, steps):
        self.device, self.ranks, self.peak, self.first_step, self.steps = device, ranks, peak, first_step, steps
        self.seconds = 0.0
        self.restart()

    def restart(self):
        self._begin, self._tokens, self._flops = time.monotonic(), 0, 0.0

    def count(self, tokens, flops):
        self._tokens += tokens
        self._flops += flops

    def report(self, next_step):
        """Rates of what was counted since the last report, for which the caller has waited."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        self.seconds += seconds
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident_bytes()
        rates = {"tokens_per_second": self._tokens / seconds, "memory_bytes": memory,
                 "mfu": self._flops / seconds / (self.peak * self.ranks) if self.peak else None,
                 "seconds_left": self.seconds / max(1, next_step - self.first_step) * (self.steps - next_step)}
        self.restart()
        return rates


def _resident_bytes():
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def line(step, steps, loss, rate, norm, rates):
    left = int(rates["seconds_left"])
    mfu = "-" if rates["mfu"] is None else f"{100 * rates['mfu']:.1f} %"
    return (f"step {step + 1}/{steps}  loss {loss:.4f}  lr {rate:.2e}  norm {norm:.2f}  "
            f"{rates['tokens_per_second']:.0f} tokens/s  MFU {mfu}  {rates['memory_bytes'] / 2**30:.2f} GiB  "
            f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
