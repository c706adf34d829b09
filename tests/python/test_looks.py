"""examples/05_language_model/looks.py against plain loops, and on models whose looks are known."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "05_language_model"))

import looks  # noqa: E402
import model  # noqa: E402
import token_files  # noqa: E402
from settings import PRESETS, Settings  # noqa: E402

SETTINGS = Settings(**{**PRESETS["tiny"], "parameters": 120_000})  # m 16, n 4, one first and two last blocks forced
LENGTH = 200


@pytest.fixture
def selected():
    """Random selections that obey the rules: [rows, G, n], ascending, -1 after them."""
    random = np.random.RandomState(1)
    chosen = np.full((LENGTH, 2, 4), -1)
    for t in range(LENGTH):
        for g in range(2):
            last = t // 16
            blocks = list(range(last + 1))
            if len(blocks) > 4:
                blocks = sorted([0, last - 1, last, random.choice(blocks[1:-2])])
            chosen[t, g, :len(blocks)] = blocks
    return torch.from_numpy(chosen)


def free_blocks(selected):
    """(t, g, block) of all that were chosen freely."""
    for t in range(LENGTH):
        last = t // 16
        if last + 1 > 4:
            for g in range(2):
                for block in selected[t, g].tolist():
                    if 1 <= block <= last - 2:
                        yield t, g, block


def test_distances(selected):
    found = looks.distances(selected, SETTINGS, LENGTH)
    assert [(one["from"], one["to"]) for one in found] == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 13)]
    away = [t // 16 - block for t, _, block in free_blocks(selected)]
    assert len(away) == 2 * (LENGTH - 64)
    for one in found:
        share = sum(one["from"] <= distance < one["to"] for distance in away) / len(away)
        assert abs(share - one["share"]) < 1e-12
        uniform = 0.0
        for t in range(64, LENGTH):
            candidates = [t // 16 - block for block in range(1, t // 16 - 1)]
            uniform += sum(one["from"] <= distance < one["to"] for distance in candidates) / len(candidates)
        assert abs(uniform / (LENGTH - 64) - one["uniform"]) < 1e-12
    assert abs(sum(one["share"] for one in found) - 1) < 1e-12


@pytest.mark.parametrize("offset", [1, 16])
def test_common_blocks(selected, offset):
    shares = [len(set(selected[t, g].tolist()) & set(selected[t + offset, g].tolist())) / 4
              for t in range(64, LENGTH - offset) for g in range(2)]
    assert abs(looks.common_share(selected, SETTINGS, LENGTH, offset) - sum(shares) / len(shares)) < 1e-12


def test_different_blocks(selected):
    counts = [len(set(selected[begin:begin + 16, g].flatten().tolist()))
              for begin in range(64, LENGTH - 15, 16) for g in range(2)]
    picks, different = looks.different_blocks(selected, SETTINGS, LENGTH)
    assert picks == 64 and abs(different - sum(counts) / len(counts)) < 1e-12


def test_nothing_is_chosen_in_short_documents(selected):
    assert looks.distances(selected[:60], SETTINGS, 60) == []
    assert looks.common_share(selected[:60], SETTINGS, 60, 1) is None
    assert looks.different_blocks(selected[:60], SETTINGS, 60) is None


@pytest.mark.parametrize("without", ["", "compressed", "window"])
def test_shares_of_the_branches(without):
    torch.manual_seed(1)
    settings = dataclasses.replace(SETTINGS, without=without)
    made = looks.Looks(model.GPT(settings, 257).double(), settings, torch.device("cpu"), torch.float64)
    random = np.random.RandomState(1)
    for _ in range(2):
        tokens = random.randint(1, 257, LENGTH)
        made.add(token_files.Batch(tokens, tokens, [0, LENGTH]))
    layers = made.means()
    assert len(layers) == 2
    for layer in layers:
        assert set(layer["shares"]) == {"compressed", "selected", "window"}
        assert abs(sum(layer["shares"].values()) - 1) < 1e-6
        for branch, share in layer["shares"].items():
            assert share < 1e-12 if branch == without else share > 0.01
            assert abs(layer["gates"][branch] - (0 if branch == without else 0.5)) < 0.1
        assert 0.5 < layer["common"]["1"] <= 1 and 4 <= layer["different"][1] <= 64
        assert abs(sum(one["share"] for one in layer["distances"]) - 1) < 1e-12
