#!/usr/bin/env python3
"""Runs a list of trainings of examples/05_language_model one after another, and collects results.json after each.

    python3 bench/quality.py --data tokens --out results --plan core            # NSA and full attention, 8K and 32K
    python3 bench/quality.py --data tokens --out results --plan core --gpus 2   # two runs at a time
    python3 bench/quality.py --data tokens --out results --plan tiny --cpu      # everything, on a CPU, minutes
    python3 bench/quality.py --plan core --plan retrieval --list                # what there is to do

Can be stopped at any point: by --time-limit, SIGTERM or Ctrl-C, which trainings answer with a checkpoint, or by a kill.
The same command goes on. A run that results.json has as complete is not repeated, even where its folder is gone, so
results.json alone carries over to another machine.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from quality_plan import PLANS, Run, runs_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "05_language_model"
STOPPED = 3  # the status of a training that wrote a checkpoint before its end
RESERVE = 15  # seconds for checkpoints when the time is up
CURVE_POINTS = 200


class Results:
    """results.json, rewritten after each change."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / "results.json"
        self.contents = json.loads(self.path.read_text()) if self.path.exists() else {"runs": {}}

    def is_complete(self, name):
        return self.contents["runs"].get(name, {}).get("status") == "complete"

    def add(self, name, entry):
        self.contents["runs"][name] = {**entry, "commit": _commit(), "date": datetime.date.today().isoformat()}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.contents, indent=1) + "\n")
        os.replace(partial, self.path)


def _commit():
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _json(path):
    return json.loads(path.read_text()) if path.exists() else None


def _curve(folder):
    """Tokens and training loss of at most CURVE_POINTS spans of steps, each the mean of its span."""
    if not (folder / "log.csv").exists():
        return []
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    span = max(1, -(-len(rows) // CURVE_POINTS))
    spans = [rows[begin:begin + span] for begin in range(0, len(rows), span)]
    return [{"tokens": int(part[-1]["tokens"]), "loss": sum(float(row["loss"]) for row in part) / len(part),
             "tokens_per_second": float(part[-1]["tokens_per_second"]), "mfu": float(part[-1]["mfu"] or 0) or None}
            for part in spans]


class Job:
    """A started run."""

    def __init__(self, run: Run, arguments, gpus, seconds):
        self.run, self.gpus, self.folder = run, gpus, arguments.out / (run.of or run.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable]
        if run.gpus > 1:
            command += ["-m", "torch.distributed.run", "--nnodes", "1", "--rdzv_backend", "c10d",
                        "--rdzv_endpoint", "localhost:0", "--nproc_per_node", str(run.gpus)]
        command += [str(EXAMPLE / f"{run.program}.py"), *run.flags]
        if run.program == "looks":
            command += ["--run", str(self.folder)]
        else:
            command += ["--out", str(self.folder)]
            (self.folder / "summary.json").unlink(missing_ok=True)  # an earlier part's, which would hide a failure
            if seconds is not None:
                command += ["--stop-after", str(max(0.0, seconds))]
        if run.program != "retrieval":
            command += ["--data", str(arguments.data)]
        environment = dict(os.environ)
        if arguments.cpu:
            command += ["--cpu"]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        self.output = self.folder / f"{run.program}.out"
        with open(self.output, "a", encoding="utf-8") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT,
                                            start_new_session=True)  # Ctrl-C reaches it once, through this program

    def stop(self):
        self.process.terminate()  # torchrun tells its ranks

    def result(self):
        """The entry of results.json, when the process has ended."""
        run, status = self.run, self.process.returncode
        summary = _json(self.folder / "summary.json")
        entry = {"program": run.program, "flags": run.flags, "gpus": run.gpus, "status": "failed"}
        if status == 0:
            entry["status"] = "complete"
        elif status == STOPPED or (run.gpus > 1 and summary is not None and not summary["complete"]):
            entry["status"] = "stopped"  # torchrun does not pass the status on
        else:
            entry["error"] = self.output.read_text(errors="replace")[-2000:]
        if run.program == "looks":
            return {**entry, "looks": _json(self.folder / "looks.json")}
        return {**entry, "summary": summary, "curve": _curve(self.folder),
                "answers": (_json(self.folder / "answers.json") or {}).get("answers")}


class Scheduler:
    """Starts runs in their order, as GPUs become free, and collects their results."""

    def __init__(self, arguments, results):
        self.arguments, self.results = arguments, results
        self.free, self.jobs, self.stopping = list(range(arguments.gpus)), [], False
        self._end = None if arguments.time_limit is None else time.monotonic() + arguments.time_limit

    def seconds_left(self):
        return None if self._end is None else self._end - RESERVE - time.monotonic()

    def stop(self, *_):
        self.stopping = True
        for job in self.jobs:
            job.stop()

    def execute(self, runs):
        """Returns whether every run is complete."""
        waiting = [run for run in runs if not self.results.is_complete(run.name)]
        while self.jobs or waiting:
            out_of_time = self._end is not None and self.seconds_left() <= 0
            if self.stopping or out_of_time:
                waiting = []
            if waiting and self._can_start(waiting[0]):
                self._start(waiting.pop(0))
                continue
            if waiting and not self.jobs:  # what it needs cannot come any more
                print(f"{waiting[0].name}: left out, needs {self._need(waiting[0])}", flush=True)
                waiting.pop(0)
                continue
            self._collect()
        return all(self.results.is_complete(run.name) for run in runs)

    def _need(self, run):
        return run.of if run.of and not self.results.is_complete(run.of) else f"{run.gpus} GPUs"

    def _can_start(self, run):
        if run.of:
            trained = self.results.is_complete(run.of) and (self.arguments.out / run.of / "checkpoint.pt").exists()
            return trained and len(self.free) >= run.gpus
        return len(self.free) >= run.gpus

    def _start(self, run):
        gpus, self.free = self.free[:run.gpus], self.free[run.gpus:]
        where = "" if self.arguments.cpu else f" on GPU {', '.join(map(str, gpus))}"
        print(f"{run.name}: started{where}", flush=True)
        self.jobs.append(Job(run, self.arguments, gpus, self.seconds_left()))

    def _collect(self):
        ended = [job for job in self.jobs if job.process.poll() is not None]
        if not ended and self.jobs:
            time.sleep(0.2)
        for job in ended:
            self.jobs.remove(job)
            self.free = sorted(self.free + job.gpus)
            entry = job.result()
            self.results.add(job.run.name, entry)
            print(f"{job.run.name}: {entry['status']}{_headline(entry)}", flush=True)


def _headline(entry):
    if entry["status"] == "failed":
        return ": " + (entry["error"].strip().split("\n") or [""])[-1]
    summary = entry.get("summary") or {}
    losses = summary.get("evaluations") or []
    return f", held-out loss {losses[-1]['loss']:.4f}" if losses else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="append", choices=sorted(PLANS), required=True, help="may be given repeatedly")
    parser.add_argument("--data", type=pathlib.Path, help="folder that prepare.py made; not needed for retrieval alone")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"), help="folder; default results")
    parser.add_argument("--only", help="runs whose names contain this")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of this machine to use; default 1")
    parser.add_argument("--cpu", action="store_true", help="no GPU, one run at a time")
    parser.add_argument("--time-limit", type=float, help="seconds after which everything is stopped, with checkpoints")
    parser.add_argument("--list", action="store_true", help="prints the runs and whether they are complete")
    arguments = parser.parse_args()
    runs = [run for run in runs_of(arguments.plan) if not arguments.only or arguments.only in run.name]
    results = Results(arguments.out)
    if arguments.list:
        for run in runs:
            done = "complete" if results.is_complete(run.name) else "to do"
            print(f"{run.name:28s} {done:9s} {run.gpus} GPU  {run.program} {' '.join(run.flags)}")
        return
    if arguments.data is None and any(run.program != "retrieval" for run in runs):
        sys.exit("quality.py: error: --data: found nothing, expected the folder that prepare.py made")
    arguments.out.mkdir(parents=True, exist_ok=True)
    scheduler = Scheduler(arguments, results)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, scheduler.stop)
    sys.exit(0 if scheduler.execute(runs) else STOPPED)


if __name__ == "__main__":
    main()
