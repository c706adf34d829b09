"""The retrieval tasks of examples/05_language_model: a solver that knows only the rules finds every answer, samples
are always the same, and a model that knows the answers scores 100 %."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

root = pathlib.Path(__file__).resolve().parents[2]
example = root / "examples" / "05_language_model"
sys.path.insert(0, str(example))

import model  # noqa: E402
import retrieval  # noqa: E402
import settings as settings_module  # noqa: E402
import tasks  # noqa: E402
from parallel import World  # noqa: E402

LENGTHS = (64, 100, 1024)


def needles(text):
    return [(text[i + 1], text[i + 2]) for i, token in enumerate(text) if token == tasks.NEEDLE]


def solve(task, text):
    """The answers that follow `text`, which ends where the first one is. Written from the tasks' descriptions, not from
    their code."""
    if task in ("single", "multi_key"):
        return [dict(needles(text))[text[-1]]]
    if task == "multi_value":
        return sorted(value for key, value in needles(text) if key == text[-1])
    if task == "variable_tracking":
        assigned = {text[i + 1]: text[i + 2] for i, token in enumerate(text) if token == tasks.ASSIGN}
        names, last = [], text[-1]
        while last in assigned.values():
            [last] = [variable for variable, source in assigned.items() if source == last]
            names.append(last)
        return names
    counts = Counter(text[1:-1]).most_common()
    if task == "common_words":
        return sorted(word for word, _ in counts[:4])
    if task == "frequent_words":
        return [word for word, _ in counts[:3]]
    if task == "copying":
        begin = text.index(tasks.COPY)
        return text[begin + 1:text.index(tasks.END)]
    assert task == "induction"
    assert text.count(text[-1]) == 2
    return [text[text.index(text[-1]) + 1]]


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("length", LENGTHS)
def test_answers_follow_from_the_text(task, length):
    for index in range(8):
        sample = tasks.sample(task, length, "test", index)
        tokens = sample.tokens.tolist()
        assert len(tokens) == length and tokens[0] == 0 and max(tokens) < tasks.VOCABULARY
        assert sample.answers == sorted(sample.answers) and sample.answers[-1] == length - 1
        if task == "multi_query":
            assert len(sample.answers) == 4
            for answer in sample.answers:
                assert tokens[answer - 2] == tasks.ASK
                assert tokens[answer] == dict(needles(tokens))[tokens[answer - 1]]
            continue
        first = sample.answers[0]
        assert sample.answers == list(range(first, length))
        assert list(solve(task, tokens[:first])) == tokens[first:]


@pytest.mark.parametrize("task", tasks.WITH_DEPTH)
def test_depth(task):
    first_of = {"single": tasks.NEEDLE, "copying": tasks.COPY}
    for depth in (0.0, 0.3, 0.95):
        tokens = tasks.sample(task, 1000, "test", 1, depth).tokens.tolist()
        place = tokens.index(first_of.get(task, tokens[-2]))
        assert abs(place / 1000 - depth) < 0.05


def test_samples_are_always_the_same():
    digest = hashlib.sha256()
    for task in tasks.TASKS:
        for length in LENGTHS:
            digest.update(tasks.sample(task, length, "test", 3).tokens.astype("<i8").tobytes())
    digest.update(tasks.TaskStream(256, 100, 1).sequence(77).tokens.astype("<i8").tobytes())
    assert digest.hexdigest() == "07fe41f18c5a05060aec41dcf9eb94963fd35779d6b0ead42c2fca1bd74d91b8"
    one, other = (tasks.sample("single", 64, "test", index).tokens for index in (1, 2))
    assert not np.array_equal(one, other)


def test_training_sequences():
    stream = tasks.TaskStream(256, 100, 1)
    lengths = []
    for index in (0, 30, 99):
        batch = stream.sequence(index)
        assert len(batch.tokens) == 256 and abs(batch.weights.sum() - 1) < 1e-12
        assert np.array_equal(batch.targets[batch.weights > 0], np.append(batch.tokens, 0)[1:][batch.weights > 0])
        lengths += np.diff(batch.bounds).tolist()
    assert lengths[:4] == [64] * 4  # the first sequences are short ones
    assert {max(np.diff(stream.sequence(index).bounds)) for index in range(60, 100)} == {64, 128, 256}
    with pytest.raises(ValueError, match="context: found 100"):
        tasks.TaskStream(100, 10, 1)


class Knowing(torch.nn.Module):
    """Logits of the right answers, except for some."""

    def __init__(self, samples, wrong):
        super().__init__()
        self.settings = settings_module.Settings(token_shift=False)
        self.targets = torch.from_numpy(tasks.batch_of(samples).targets)
        self.wrong = wrong

    def forward(self, tokens, layout, previous):
        logits = torch.zeros(len(tokens), tasks.VOCABULARY)
        logits[torch.arange(len(tokens)), layout.plan.shard(self.targets)] = 1
        for row in self.wrong:
            logits[row] = 0  # the answer is then token 0, which no answer is
        return logits


def test_scores():
    samples = [tasks.sample("multi_query", 80, "test", index) for index in range(3)]
    config = model.config_of(settings_module.Settings(**settings_module.PRESETS["tiny"]))
    wrong = [samples[0].answers[1] - 1, 80 + samples[1].answers[3] - 1]
    found = retrieval.right_answers(Knowing(samples, wrong), samples, config, World(force_cpu=True), torch.float32)
    assert found == [[True, False, True, True], [True, True, True, False], [True] * 4]


def test_the_program(tmp_path):
    """A run that was stopped gives the same answers as one that was not."""
    command = [sys.executable, example / "retrieval.py", "--preset", "tiny-retrieval", "--cpu", "--tokens", "3072",
               "--lengths", "64,96", "--samples", "3"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def run(out, *flags):
        result = subprocess.run([*map(str, command), "--out", str(tmp_path / out), *flags], env=environment, text=True,
                                timeout=280, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return result.returncode, result.stdout

    status, output = run("stopped", "--stop-at", "2")
    assert status == 3 and not (tmp_path / "stopped" / "answers.json").exists(), output
    status, output = run("stopped")
    assert status == 0 and "multi_query" in output, output
    status, output = run("whole")
    assert status == 0, output
    answers, whole = (json.loads((tmp_path / out / "answers.json").read_text()) for out in ("stopped", "whole"))
    assert answers == whole and set(answers["answers"]) == set(tasks.TASKS)
    for task, cells in answers["answers"].items():
        assert set(cells) == {"64", "96"}
        assert all(cell["answers"] >= 3 and 0 <= cell["right"] <= cell["answers"] for cell in cells.values())
        assert all(("depths" in cell) == (task in tasks.WITH_DEPTH) for cell in cells.values())
