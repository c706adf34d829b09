"""The adapter for Megatron-core in the real package: two context-parallel ranks against one."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("megatron.core", reason="megatron-core is not installed (it needs a newer PyTorch than Debian's)")
from torchrun import torchrun

ranks = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("megatron")
    script = pathlib.Path(__file__).parent / "megatron_ranks.py"
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), str(ranks), str(folder)],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(ranks)]
    try:
        texts = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank}:\n{texts[rank]}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("name", ["batch", "packed", "branches", "any lengths", "any length of a batch"])
def test_same_as_one_rank(results, name):
    assert all(result[name] < 1e-12 for result in results)
    assert any("compress_v.w1" in parameter for parameter in results[0]["names"])
    assert any("gate_projection" in parameter for parameter in results[0]["names"])
    assert any("linear_branch_kv" in parameter for parameter in results[0]["names"])


def test_documents_that_megatron_cannot_cut_are_refused(results):
    assert all("found a document of 22 tokens" in result["uneven"] for result in results)


def test_masks_over_context_parallel_ranks(results):
    assert all("attention_mask: found one that is not causal alone" in result["mask"] for result in results)
    assert all(result["causal mask"] for result in results)


@pytest.mark.parametrize("name", ["heads split", "other groups", "one KV head"])
def test_tensor_parallel_ranks(results, name):
    """The layer of one rank from the same seed, its gradients, and its checkpoint, also where KV heads are fewer."""
    for result in results:
        error, same, counts = result[name]
        assert error < 1e-12 and same
        assert len([one for one in counts if "compress_" in one]) == 10
    offsets = [result[name][2]["core_attention.compress_k.w1"] for result in results]
    if name != "one KV head":
        assert [offset for offset, _ in offsets] == [[0, 0, 0], [1, 0, 0]]
    else:  # one is saved, and the other is its replica
        assert offsets == [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]


def test_checkpoint_names(results):
    assert "core.compress_k.pos" in results[0]["sharded"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_page(tmp_path, ranks):
    """The page's program runs, and its losses are those of one rank."""
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "megatron.md").read_text()
    program = re.search(r"^```python\n(# train\.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL).group(1)
    (tmp_path / "train.py").write_text(program)
    result = subprocess.run(
        [*torchrun(ranks), str(tmp_path / "train.py")], text=True, timeout=280, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stdout
    losses = [float(loss) for loss in re.findall(r"^loss (.*)$", result.stdout, re.MULTILINE)]
    one_rank.setdefault("losses", losses)
    assert len(losses) == 3 and losses[2] < losses[0]
    assert all(abs(a - b) < 1e-4 for a, b in zip(losses, one_rank["losses"]))


one_rank = {}
