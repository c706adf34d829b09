"""examples/05_language_model: its data, its models, that both attentions learn, and that a resumed run is the same."""

import csv
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

root = pathlib.Path(__file__).resolve().parents[2]
example = root / "examples" / "05_language_model"
sys.path.insert(0, str(example))

import causal_attention  # noqa: E402
import flops  # noqa: E402
import loading  # noqa: E402
import model  # noqa: E402
import settings as settings_module  # noqa: E402
import token_files  # noqa: E402
import trainer  # noqa: E402
from parallel import World  # noqa: E402
from torchrun import torchrun  # noqa: E402

# float64, so that runs on several ranks agree to rounding; 2 layers, so that layers feed each other.
TINY = settings_module.Settings(
    parameters=32_000, hidden=32, layers=2, num_q_heads=4, num_kv_heads=2, head_dim=8, compressor="linear",
    compress_block=4, compress_stride=2, select_block=8, select_count=4, window=8, context=128, tokens=256 * 120,
    step_tokens=256, micro_tokens=128, learning_rate=1e-2, warmup_steps=5, evaluate_every=60, evaluation_tokens=1024,
    dtype="float64", rope_base=100.0)


def flags_of(settings):
    return [flag for name, value in settings.to_dict().items() if value not in (False, "")
            for flag in ("--" + name.replace("_", "-"), str(value))]


def run(*command, start=(sys.executable,)):
    result = subprocess.run([*start, *map(str, command)], text=True, timeout=280, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents whose letters are mostly those two before, about which the last one tells little; and other files."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.RandomState(2)
    for index in range(60):
        letters = list(random.randint(0, 6, 2))
        while len(letters) < 40 + 12 * index:
            follows = letters[-2] if random.rand() < 0.9 else random.randint(6)
            letters.append(follows)
        (folder / f"part{index % 3}").mkdir(exist_ok=True)
        (folder / f"part{index % 3}" / f"{index:02d}.txt").write_text("".join("abcdef"[i] for i in letters))
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00\x01" * 50)
    (folder / "zero.txt").write_bytes(b"a\0b")
    return folder


@pytest.fixture(scope="module")
def data(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "tokens"
    status, output = run(example / "prepare.py", "--text", text, "--out", out, "--held-out", 0.2)
    assert status == 0, output
    return out


def test_tokens_are_the_bytes_of_the_text(text, data):
    expected = {path.read_bytes() for path in text.glob("part*/*.txt")}
    found = []
    for split in token_files.SPLITS:
        file = token_files.TokenFile(data, split)
        for begin, end in zip(file.bounds, file.bounds[1:]):
            assert file.tokens[begin] == token_files.BOUNDARY
            found.append(bytes((file.tokens[begin + 1:end] - 1).astype(np.uint8)))
    assert len(found) == len(expected) == 60 and set(found) == expected


def test_joined_documents_have_the_bytes_asked_for(text, tmp_path):
    status, output = run(example / "prepare.py", "--text", text, "--out", tmp_path / "joined", "--join", 2000,
                         "--held-out", 0.3)
    assert status == 0, output
    lengths = np.concatenate([token_files.TokenFile(tmp_path / "joined", split).lengths
                              for split in token_files.SPLITS])
    assert len(lengths) < 30 and lengths.max() <= 2000 + 2 * 60 and lengths.max() > 1000


def test_byte_pairs_are_the_text(text, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    (tmp_path / "text").mkdir()
    special = "Grüße, <|boundary|> \t\r\n 漢字 \U0001f600\n" * 20
    for index in range(30):
        (tmp_path / "text" / f"{index}.txt").write_text(special[index:], newline="")
    status, output = run(example / "prepare.py", "--text", tmp_path / "text", text, "--out", tmp_path / "tokens",
                         "--vocabulary", 300, "--held-out", 0.3)
    assert status == 0, output
    coder = tokenizers.Tokenizer.from_file(str(tmp_path / "tokens" / "tokenizer.json"))
    expected = {path.read_bytes().decode() for path in [*text.glob("part*/*.txt"), *(tmp_path / "text").iterdir()]}
    found = set()
    for split in token_files.SPLITS:
        file = token_files.TokenFile(tmp_path / "tokens", split)
        assert file.vocabulary == 300
        for begin, end in zip(file.bounds, file.bounds[1:]):
            assert list(file.tokens[begin:end]).count(token_files.BOUNDARY) == 1
            found.add(coder.decode(file.tokens[begin + 1:end].tolist(), skip_special_tokens=False))
    assert found == {one.replace("<|boundary|>", "<|boundary |>") for one in expected}


@pytest.mark.parametrize("flags, message", [
    (["--text", "missing"], "found no folder missing"),
    (["--text", ".", "--out", "."], "expected a folder that does not exist yet"),
])
def test_bad_folders(flags, message, tmp_path):
    status, output = run(example / "prepare.py", "--out", tmp_path / "out", *flags)
    assert status == 1 and message in output


def test_packed_sequences_are_the_stream(data):
    file = token_files.TokenFile(data, "train")
    stream = token_files.PackedStream(file, 128, seed=3)
    sequences = [stream.piece(0, within) for within in range(stream.per_epoch)]
    tokens = np.concatenate([one.tokens for one in sequences])
    targets = np.concatenate([one.targets for one in sequences])
    assert np.array_equal(tokens[1:], targets[:-1])
    for one in sequences:
        assert one.bounds[0] == 0 and one.bounds[-1] == len(one.tokens) == 128
        begins = np.flatnonzero(one.tokens == token_files.BOUNDARY)
        assert set(begins) | {0} == set(one.bounds[:-1])
        assert all(one.previous[begins] == token_files.BOUNDARY)
    whole = [tuple(file.tokens[begin:end]) for begin, end in zip(file.bounds, file.bounds[1:])]
    starts = [*np.flatnonzero(tokens == token_files.BOUNDARY), len(tokens)]
    found = [tuple(tokens[begin:end]) for begin, end in zip(starts, starts[1:])]
    assert len(found) >= len(whole) - 2 and set(found[:-1]) <= set(whole) and len(set(found)) == len(found)
    shuffled = [tuple(stream.sequence(index).tokens) for index in range(stream.per_epoch)]
    ordered = [tuple(one.tokens) for one in sequences]
    assert sorted(shuffled) == sorted(ordered) and shuffled != ordered
    again = token_files.PackedStream(file, 128, seed=3)
    second = again.sequence(stream.per_epoch + 5)  # the next epoch has another order
    assert tuple(again.sequence(5).tokens) == shuffled[5] != tuple(second.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_sequences_ahead(workers, data):
    stream = token_files.PackedStream(token_files.TokenFile(data, "train"), 128, seed=3)
    micros = lambda step: [range(2 * step, 2 * step + 1), range(2 * step + 1, 2 * step + 2)]
    with loading.Loader(stream, micros, 3, 9, workers) as loader:
        found = [[batch.tokens.tolist() for batch in loader.next()] for _ in range(6)]
    assert found == [[stream.sequence(2 * step + i).tokens.tolist() for i in range(2)] for step in range(3, 9)]
    with loading.Loader(stream, micros, 3, 9, workers):  # left early
        pass


def test_held_out_batches(data):
    file = token_files.TokenFile(data, "held_out")
    stream = np.append(np.asarray(file.tokens).astype(np.int64), token_files.BOUNDARY)
    expected = []
    for begin, end in zip(file.bounds, file.bounds[1:]):
        for piece in range(begin, end, 128):
            last = min(piece + 128, end)
            expected.append((tuple(stream[piece:last]), tuple(stream[piece + 1:last + 1])))
    batches = token_files.held_out_batches(file, 128, 10**6, 300)
    found = [(tuple(batch.tokens[begin:end]), tuple(batch.targets[begin:end]))
             for batch in batches for begin, end in zip(batch.bounds, batch.bounds[1:])]
    assert sorted(found) == sorted(expected) and max(len(batch.tokens) for batch in batches) <= 300
    lengths = [len(tokens) for tokens, _ in found]
    assert lengths == sorted(lengths, key=lambda length: length < 128)
    few = token_files.held_out_batches(file, 128, 256, 128)
    assert [len(batch.tokens) for batch in few] == [128, 128]


@pytest.mark.parametrize("change", [
    {}, {"attention": "full"}, {"compressor": "mean"}, {"compressor": "mlp"}, {"token_shift": True}])
def test_parameters_are_counted_and_matched(change):
    settings = dataclasses.replace(TINY, **change)
    inner = model.mlp_width(settings, 257)
    made = model.GPT(settings, 257)
    count = sum(parameter.numel() for parameter in made.parameters())
    assert count == model.count_parameters(settings, 257, inner)
    assert abs(count - settings.parameters) <= 0.01 * settings.parameters


def test_pairs_are_those_of_the_masks():
    for length in (1, 3, 9, 70, 128):
        full = dataclasses.replace(TINY, attention="full")
        assert flops.pairs_of_document(full, length) == length * (length + 1) // 2
        pairs = 0
        for t in range(length):
            pairs += sum(1 for i in range(length) if 2 * i + 4 - 1 <= t) + min(8, t + 1)
            blocks = list(range(t // 8 + 1))[-4:]  # any n that hold the query's own
            pairs += sum(1 for u in range(t + 1) if u // 8 in blocks)
        assert flops.pairs_of_document(TINY, length) == pairs


@pytest.mark.parametrize("first, last", [(0, 20), (13, 20), (0, 1)])
def test_full_attention_is_causal_softmax(first, last):
    torch.manual_seed(1)
    q, k, v = (torch.randn(20, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    expected = torch.empty(20, 4, 8, dtype=torch.float64)
    for t in range(20):
        for h in range(4):
            p = (k[:t + 1, h // 2] @ q[t, h] / math.sqrt(8)).softmax(0)
            expected[t, h] = p @ v[:t + 1, h // 2]
    for attend in (causal_attention.attend, causal_attention._plain):
        found = attend(q[first:last], k[:last], v[:last])
        assert (found - expected[first:last]).abs().max() < 1e-12


def test_runs_of_zigzag_ranks():
    """Rows 0 to 15 and 48 to 63 of documents that end at 10, 12, 50 and 64."""
    rows = np.concatenate((np.arange(0, 16), np.arange(48, 64)))
    assert causal_attention.runs_of(rows, [0, 10, 12, 50, 64]) == [
        (0, 10, 0, 10), (10, 12, 10, 12), (12, 16, 12, 16), (16, 18, 12, 50), (18, 32, 50, 64)]
    assert causal_attention.runs_of(np.array([], dtype=np.int64), [0, 5]) == []


def train(settings, data, out, **keywords):
    stream = token_files.PackedStream(token_files.TokenFile(data, "train"), settings.context, settings.seed)
    held_out = token_files.held_out_batches(token_files.TokenFile(data, "held_out"), settings.context,
                                            settings.evaluation_tokens, settings.micro_tokens)
    made = trainer.Trainer(settings, World(force_cpu=True), stream, held_out, 257, out, checkpoint_every=13)
    return made.train(**keywords), made


def losses_of(out):
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Complete runs of both attentions."""
    folder = tmp_path_factory.mktemp("runs")
    for attention in ("nsa", "full"):
        complete, _ = train(dataclasses.replace(TINY, attention=attention), data, folder / attention)
        assert complete
    return folder


def entropy_after_one(data):
    """Entropy of a held-out token of which only the token before it is known, in nats."""
    tokens = np.asarray(token_files.TokenFile(data, "held_out").tokens).astype(np.int64)
    pairs, counts = np.unique(np.stack((tokens[:-1], tokens[1:])), axis=1, return_counts=True)
    before = np.bincount(tokens[:-1])[pairs[0]]
    return -(counts * np.log(counts / before)).sum() / counts.sum()


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_both_learn(trained, data, attention):
    losses = losses_of(trained / attention)
    assert len(losses) == 120
    assert abs(losses[0] - math.log(257)) < 0.3  # nothing is known at first
    first, last = json.loads((trained / attention / "evaluations.json").read_text())
    assert (first["step"], last["step"]) == (60, 120)
    assert last["loss"] < first["loss"]
    assert last["loss"] < entropy_after_one(data), last  # so it looks at tokens before the last one
    assert [bucket["to"] for bucket in last["buckets"]] == [64, 128]
    total = sum(bucket["loss"] * bucket["tokens"] for bucket in last["buckets"])
    assert abs(total / last["tokens"] - last["loss"]) < 1e-12


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_resumed_runs_are_bitwise_the_same(attention, trained, data, tmp_path):
    settings = dataclasses.replace(TINY, attention=attention)
    complete, _ = train(settings, data, tmp_path, stop_at=13)
    assert not complete
    early = (tmp_path / "checkpoint.pt").read_bytes()
    complete, more = train(settings, data, tmp_path, stop_at=20)
    assert not complete and more.first_step == 13 and len(losses_of(tmp_path)) == 20
    (tmp_path / "checkpoint.pt").write_bytes(early)  # as if the run had ended at once: 13 to 19 are trained again
    complete, again = train(settings, data, tmp_path, stop_at=20)
    assert not complete and again.first_step == 13
    assert losses_of(tmp_path) == losses_of(trained / attention)[:20]
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in more.model.state_dict().items())


def test_a_checkpoint_of_other_settings_is_refused(trained, data):
    changed = dataclasses.replace(TINY, window=16)
    with pytest.raises(settings_module.SettingsError, match="window: found 16, expected 8"):
        train(changed, data, trained / "nsa")


@pytest.mark.parametrize("change, message", [
    ({"micro_tokens": 100}, "micro_tokens: found 100, expected a multiple of context"),
    ({"step_tokens": 300}, "step_tokens: found 300"),
    ({"layers": 0}, "layers: found 0"),
    ({"attention": "full", "without": "window"}, "without: found 'window' with full attention"),
    ({"parameters": 10}, "parameters: found 10, expected at least"),
])
def test_bad_settings(change, message, data, tmp_path):
    with pytest.raises(settings_module.SettingsError, match=message):
        train(dataclasses.replace(TINY, **change), data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_losses_are_those_of_one_rank(trained, data, tmp_path):
    """DP 2 x CP 2, by torchrun."""
    file = tmp_path / "settings.json"
    TINY.save(file)
    status, output = run(pathlib.Path(__file__).parent / "language_model_ranks.py", example, data, file, tmp_path,
                         start=torchrun(4))
    assert status == 0, output
    for attention in ("nsa", "full"):
        expected, found = losses_of(trained / attention)[:4], losses_of(tmp_path / attention)
        assert len(found) == 4
        assert max(abs(a - b) for a, b in zip(found, expected)) < 1e-10


def test_the_program(data, tmp_path):
    """Flags, status 3 of a stopped run, and 0 of the same command when it completes the run."""
    command = [example / "train.py", "--data", data, "--out", tmp_path / "run", "--cpu", "--log-every", 2,
               "--preset", "tiny", *flags_of(dataclasses.replace(TINY, tokens=1024))]
    status, output = run(*command, "--stop-at", 2)
    assert status == 3 and "step 2/4" in output, output
    status, output = run(*command)
    assert status == 0 and "step 4/4" in output and "held-out loss" in output, output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"] and summary["settings"]["hidden"] == 32 and summary["evaluations"][-1]["step"] == 4
    assert summary["seconds"] > 0 and abs(summary["parameters"] - TINY.parameters) <= 0.01 * TINY.parameters
    status, output = run(*command, "--window", 9)
    assert status == 1 and "train.py: error: window: found 9, expected 8" in output, output
