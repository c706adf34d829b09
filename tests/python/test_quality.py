"""bench/quality.py with programs that only pretend to train, and bench/quality_report.py on made-up results."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import pytest

bench = pathlib.Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(bench))

import quality_plan  # noqa: E402
import quality_report  # noqa: E402

# A program in the place of train.py, retrieval.py and looks.py: notes its GPUs, and ends as the file `behaviour` of its
# folder says: complete, stopped (the first time), failed, or waits for SIGTERM.
PRETENDED = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(flags.get("--out") or flags.get("--run"))
behaviour = json.loads((pathlib.Path(__file__).parent / "behaviour.json").read_text()).get(out.name, "complete")
with open(pathlib.Path(__file__).parent / "order.txt", "a") as file:
    file.write(f"{pathlib.Path(__file__).stem} {out.name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
if behaviour == "fail":
    sys.exit("it went wrong")
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if behaviour == "wait":
    while not stopped:
        time.sleep(0.01)
first = behaviour == "stop once" and not (out / "checkpoint.pt").exists()
(out / "checkpoint.pt").write_text("")
complete = not (first or stopped)
(out / "looks.json" if "looks" in __file__ else out / "summary.json").write_text(
    json.dumps({"complete": complete, "evaluations": [{"step": 1, "loss": 2.5}]}))
sys.exit(0 if complete else 3)
"""
RUNNER = """
import pathlib, sys
sys.path.insert(0, {bench!r})
import quality, quality_plan
quality.EXAMPLE = pathlib.Path({example!r})
quality.PLANS["pretended"] = quality_plan.PLANS["pretended"] = [
    quality_plan.Run("a", "train", []), quality_plan.Run("b", "train", []), quality_plan.Run("c", "retrieval", []),
    quality_plan.Run("look", "looks", [], of="a"), quality_plan.Run("look-at-b", "looks", [], of="b")]
quality.main()
"""


class Bench:
    def __init__(self, folder):
        self.folder, self.results = folder, folder / "results" / "results.json"
        example = folder / "example"
        example.mkdir()
        for program in quality_plan.PROGRAMS:
            (example / f"{program}.py").write_text(PRETENDED)
        self.order = example / "order.txt"
        self.behaviour = example / "behaviour.json"
        self.runner = folder / "runner.py"
        self.runner.write_text(RUNNER.format(bench=str(bench), example=str(example)))

    def command(self, *flags):
        return [sys.executable, str(self.runner), "--plan", "pretended", "--data", "tokens", "--out",
                str(self.folder / "results"), *flags]

    def run(self, *flags, **behaviour):
        self.behaviour.write_text(json.dumps(behaviour))
        self.order.write_text("")
        result = subprocess.run(self.command(*flags), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                timeout=60)
        return result.returncode, result.stdout, [line.split() for line in self.order.read_text().splitlines()]

    def statuses(self):
        return {name: entry["status"] for name, entry in json.loads(self.results.read_text())["runs"].items()}


@pytest.fixture
def pretended(tmp_path):
    return Bench(tmp_path)


def test_stopped_and_failed_runs_are_done_again(pretended):
    status, output, order = pretended.run(a="stop once", b="fail")
    assert status == 3
    assert [name for _, name, _ in order] == ["a", "b", "c"]
    assert pretended.statuses() == {"a": "stopped", "b": "failed", "c": "complete"}
    assert "look: left out, needs a" in output and "it went wrong" in output
    assert "it went wrong" in json.loads(pretended.results.read_text())["runs"]["b"]["error"]

    status, output, order = pretended.run(a="stop once")
    assert status == 0, output
    assert [(program, name) for program, name, _ in order] == [("train", "a"), ("train", "b"), ("looks", "a"),
                                                               ("looks", "b")]
    assert set(pretended.statuses().values()) == {"complete"} and len(pretended.statuses()) == 5
    assert "a: complete, held-out loss 2.5" in output

    status, output, order = pretended.run()
    assert status == 0 and order == []  # results.json is enough
    status, output, _ = pretended.run("--list")
    assert status == 0 and output.count("complete") == 5


def test_two_gpus(pretended):
    status, output, order = pretended.run("--gpus", "2")
    assert status == 0, output
    assert sorted(order[:2]) == [["train", "a", "0"], ["train", "b", "1"]] and len(order) == 5


def test_a_signal_stops_what_runs(pretended):
    pretended.behaviour.write_text(json.dumps({"a": "wait"}))
    process = subprocess.Popen(pretended.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (pretended.order.exists() and "train a" in pretended.order.read_text()):
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.3)  # until the program has its handler
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert pretended.statuses() == {"a": "stopped"}


def test_no_time(pretended):
    status, _, order = pretended.run("--time-limit", "1")
    assert status == 3 and order == []


def test_plans_are_consistent():
    runs = quality_plan.runs_of(quality_plan.PLANS)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) > 15
    for run in runs:
        assert run.program in quality_plan.PROGRAMS and (run.of is None) == (run.program != "looks")
        assert run.of is None or names.index(run.of) < names.index(run.name)


def entry(loss, far, attention="nsa"):
    buckets = [{"from": 0, "to": 64, "loss": loss, "tokens": 100}, {"from": 64, "to": 128, "loss": far, "tokens": 50}]
    settings = {"tokens": 2000, "context": 128, "step_tokens": 1000, "attention": attention}
    evaluations = [{"step": step, "loss": loss + 1 / step, "tokens": 150, "buckets": buckets} for step in (1, 2)]
    evaluations[-1]["loss"] = loss
    return {"program": "train", "flags": [], "gpus": 1, "status": "complete", "answers": None,
            "curve": [{"tokens": 1000, "loss": 4.0, "tokens_per_second": 10.0, "mfu": 0.25}],
            "summary": {"settings": settings, "parameters": 10**6, "seconds": 36.0, "evaluations": evaluations}}


def retrieval(score, attention):
    cells = {task: {str(length): {"right": score, "answers": 100} for length in (1024, 2048)}
             for task in ("single", "x")}
    for cell in cells["single"].values():
        cell["depths"] = [score / 100] * 9 + [None]
    return {**entry(1.0, 1.0, attention), "program": "retrieval", "answers": cells}


def test_report():
    looks = {"shares": {"compressed": 0.2, "selected": 0.5, "window": 0.3}, "gates": {}, "different": [256, 47.2],
             "distances": [{"from": 0, "to": 1, "share": 0.0, "uniform": 0.0},
                           {"from": 1, "to": 2, "share": 0.75, "uniform": 0.5},
                           {"from": 2, "to": 4, "share": 0.25, "uniform": 0.5}], "common": {"1": 0.9, "2": 0.8}}
    runs = {"nsa-8k-1": entry(2.02, 3.0), "full-8k-1": entry(2.0, 3.0), "nsa-8k-2": entry(2.0, 3.1),
            "full-8k-2": entry(2.0, 3.0), "nsa-32k-1": entry(1.0, 1.0), "nsa-8k-mean": entry(9.0, 9.0),
            "nsa-8k-1-cp2": entry(2.0, 3.0),
            "full-32k-1": {"program": "train", "flags": [], "gpus": 1, "status": "failed", "error": "memory"},
            "retrieval-nsa-1": retrieval(97, "nsa"), "retrieval-full-1": retrieval(99, "full"),
            "looks-8k": {"program": "looks", "flags": [], "gpus": 1, "status": "complete",
                         "looks": {"length": 8192, "group": 16, "layers": [looks, looks]}}}
    text, pictures = quality_report.report({"runs": runs})
    assert "NSA's held-out loss is +0.50 % of full attention's" in text and "is the goal: reached" in text
    assert "Noise between seeds of NSA: 1.00 %" in text
    [far] = [line for line in text.split("\n") if line.startswith("|") and "64 – 128" in line]
    assert "+1.67" in far and "missed by 0.67 points" in far
    assert "32k: not yet compared, complete are only nsa." in text
    assert "97.0 / 99.0" in text and "more than 1 point below full attention: 4." in text
    changes = text[text.index("## Changes"):text.index("## Retrieval")]
    assert "+345.54" in changes and "-0.99" in changes and changes.count("nsa-8k") == 2
    assert "47 of 256" in text and "full-32k-1: failed" in text
    assert set(pictures) == {"loss.svg", "retrieval.svg", "looks-8k.svg"}
    for content in pictures.values():
        xml.etree.ElementTree.fromstring(content)


def test_report_of_nothing():
    text, pictures = quality_report.report({"runs": {}})
    assert "Results" in text and pictures == {}
