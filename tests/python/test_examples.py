"""The example trains, and its losses are those of one rank; the programs of the documentation run."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)
from torchrun import torchrun  # noqa: E402

root = pathlib.Path(__file__).resolve().parents[2]
environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(ranks, *command):
    start = torchrun(ranks) if ranks else [sys.executable]
    result = subprocess.run([*start, *map(str, command)], env=environment, text=True, timeout=280,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def losses_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    made = {}

    def losses(ranks, steps=8):
        if ranks not in made:
            file = folder / f"{ranks}.json"
            command = (root / "examples" / "04_pytorch" / "train.py", "--steps", steps, "--tokens", 500, "--dtype",
                       "float64", "--losses", file)
            run(ranks, *command)
            made[ranks] = json.loads(file.read_text())
        return made[ranks]

    return losses


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_losses_are_those_of_one_process(losses_of, ranks):
    expected, found = losses_of(0), losses_of(ranks)
    assert len(found) == len(expected) == 8
    assert max(abs(a - b) for a, b in zip(found, expected)) < 1e-10


def test_loss_falls(losses_of):
    losses = losses_of(0)
    assert abs(losses[0] - 5.545) < 0.2  # log 256: nothing is known at first
    assert losses[-1] < losses[0] - 0.5


def programs(page):
    """The page's Python blocks that are whole programs, which begin with a comment that names their file."""
    text = (root / "docs" / page).read_text()
    blocks = re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {name: program for program, name in blocks}


def test_pytorch_page(tmp_path):
    found = programs("pytorch.md")
    assert set(found) == {"one_rank.py", "context_parallel.py"}
    for name, program in found.items():
        (tmp_path / name).write_text(program)
    assert "loss" in run(0, tmp_path / "one_rank.py")
    assert "loss" in run(2, tmp_path / "context_parallel.py")
