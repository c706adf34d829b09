"""The runs of bench/quality.py: what is trained, asked and looked at, in the order in which to do it."""

import dataclasses
from typing import List, Optional

PROGRAMS = ("train", "retrieval", "looks")


@dataclasses.dataclass
class Run:
    """One program of examples/05_language_model with its flags. `of` is the run that `looks` looks at."""

    name: str
    program: str
    flags: List[str]
    gpus: int = 1
    of: Optional[str] = None


def _train(name, *flags, gpus=1):
    return Run(name, "train", [*flags], gpus)


def _core(contexts):
    """Both attentions, two seeds, at each context; the first seeds first."""
    return [_train(f"{attention}-{context // 1024}k-{seed}", "--attention", attention, "--context", str(context),
                   "--seed", str(seed))
            for seed in (1, 2) for context in contexts for attention in ("nsa", "full")]


def _retrieval():
    return [Run(f"retrieval-{attention}-{seed}", "retrieval",
                ["--attention", attention, "--seed", str(seed), "--workers", "6"])
            for seed in (1, 2) for attention in ("nsa", "full")]


def _ablations():
    """Changes of NSA that explain a miss, at 8K and one seed."""
    changes = {"without-compressed": ["--without", "compressed"], "without-selected": ["--without", "selected"],
               "without-window": ["--without", "window"], "mean": ["--compressor", "mean"],
               "linear": ["--compressor", "linear"], "n-8": ["--select-count", "8"], "n-32": ["--select-count", "32"],
               "unforced": ["--init-blocks", "0", "--local-blocks", "1"]}
    return [_train(f"nsa-8k-{name}", "--context", "8192", *flags) for name, flags in changes.items()]


PLANS = {
    "core": [*_core((8192, 32768)), Run("looks-8k", "looks", [], of="nsa-8k-1"),
             Run("looks-32k", "looks", [], of="nsa-32k-1")],
    "retrieval": _retrieval(),
    "cp2": [_train("nsa-8k-1-cp2", "--context", "8192", "--seed", "1", "--cp", "2", gpus=2)],
    "ablations": _ablations(),
    # Everything that the others do, at sizes for a CPU: minutes. Its numbers say nothing about quality.
    "tiny": [*(_train(f"{attention}-tiny-1", "--preset", "tiny", "--attention", attention)
               for attention in ("nsa", "full")),
             *(Run(f"retrieval-{attention}-tiny", "retrieval",
                   ["--preset", "tiny-retrieval", "--attention", attention, "--lengths", "64,128,256", "--samples",
                    "10"]) for attention in ("nsa", "full")),
             Run("looks-tiny", "looks", [], of="nsa-tiny-1")],
}


def runs_of(plans):
    """The runs of several plans, in their order."""
    return [run for plan in plans for run in PLANS[plan]]
