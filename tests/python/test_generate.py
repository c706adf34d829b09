"""examples/05_language_model/generate.py: the tokens of a forward over the whole text, at every number of ranks."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "05_language_model"
sys.path.insert(0, str(example))

import checkpoint  # noqa: E402
import model as gpt  # noqa: E402
import settings as settings_module  # noqa: E402
from torchrun import torchrun  # noqa: E402

SETTINGS = settings_module.Settings(
    parameters=32_000, hidden=32, layers=2, num_q_heads=4, num_kv_heads=2, head_dim=8, compress_block=4,
    compress_stride=2, select_block=8, select_count=4, window=8, context=128, dtype="float64", rope_base=100.0,
    token_shift=True)
PROMPT = "These words are continued by a model that has learned nothing."
COUNT = 40


def trained():
    torch.manual_seed(4)
    model = gpt.GPT(SETTINGS, 257).double()
    with torch.no_grad():  # so that the next token is not always the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = trained()
    checkpoint.save(folder, SETTINGS, model, torch.optim.AdamW(model.parameters()), 1, 0.0)
    return folder


def generate(run_folder, *flags, ranks=1):
    report = run_folder / f"report_{ranks}.json"
    start = torchrun(ranks) if ranks > 1 else [sys.executable]
    command = [*start, example / "generate.py", "--model", run_folder, "--cpu", "--json", report, *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), text=True, timeout=280, capture_output=True, env=environment)
    return result, json.loads(report.read_text()) if result.returncode == 0 else None


def expected_tokens(prompt):
    """By forwards over the whole text, a token each."""
    model, tokens = trained(), list(prompt)
    for _ in range(COUNT):
        layout = gpt.Layout(gpt.config_of(SETTINGS), [0, len(tokens)], None, torch.float64, "cpu", backward=False)
        with torch.no_grad():
            logits = model(torch.tensor(tokens), layout, torch.tensor([0, *tokens[:-1]]))
        layout.close()
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt):]


def test_every_number_of_ranks_gives_the_text_of_whole_forwards(run_folder):
    expected = expected_tokens([0, *(value + 1 for value in PROMPT.encode())])
    assert len(set(expected)) > 1
    for ranks in (1, 2, 4):
        result, report = generate(run_folder, "--prompt", PROMPT, "--tokens", COUNT, "--chunk", 17, ranks=ranks)
        assert result.returncode == 0, result.stderr
        assert report["tokens"] == expected
        assert report["ranks"] == ranks and report["tokens_per_second"] > 0
        assert (report["bytes_received_by_rank_0"] > 0) == (ranks > 1)
        assert PROMPT in result.stdout


def test_drawn_tokens_depend_on_the_seed(run_folder):
    flags = ("--prompt", PROMPT, "--tokens", 12, "--temperature", 1.0)
    first = generate(run_folder, *flags, "--seed", 3)[1]["tokens"]
    assert generate(run_folder, *flags, "--seed", 3)[1]["tokens"] == first
    assert generate(run_folder, *flags, "--seed", 4)[1]["tokens"] != first


def test_what_is_missing_is_named(run_folder, tmp_path):
    result, _ = generate(run_folder, "--tokens", 3)
    assert result.returncode != 0 and "--prompt: found neither it nor --data" in result.stderr
    command = [sys.executable, str(example / "generate.py"), "--model", str(tmp_path), "--prompt", "x", "--cpu"]
    result = subprocess.run(command, text=True, timeout=280, capture_output=True)
    assert result.returncode != 0 and "found no checkpoint.pt" in result.stderr
