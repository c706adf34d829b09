"""Ranks over gloo that are killed, stopped, leave or throw: the others get an error of the library by the deadline."""

import pathlib
import re
import signal
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

ranks, limit = 3, 300
faults = [("kill", "forward"), ("stop", "backward"), ("leave", "plan"), ("throw", "backward")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Status and text of each rank, by fault; all jobs run at once, because they mostly wait."""
    script = pathlib.Path(__file__).parent / "fault_ranks.py"
    jobs = {}
    for fault in faults:
        folder = tmp_path_factory.mktemp("-".join(fault))
        jobs[fault] = [subprocess.Popen([sys.executable, str(script), str(rank), str(ranks), str(folder), *fault],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                       for rank in range(ranks)]
    found = {}
    try:
        for fault, processes in jobs.items():
            survivors = [process for rank, process in enumerate(processes) if rank != 1]
            texts = {process: process.communicate(timeout=limit)[0] for process in survivors}
            processes[1].send_signal(signal.SIGKILL)  # a stopped one ends only by this
            texts[processes[1]] = processes[1].communicate(timeout=limit)[0]
            found[fault] = [(process.returncode, texts[process]) for process in processes]
    finally:
        for processes in jobs.values():
            for process in processes:
                process.kill()
    return found


@pytest.mark.parametrize("fault, place", faults)
def test_every_survivor_gets_an_error_in_time(outcomes, fault, place):
    for rank in (0, 2):
        status, text = outcomes[fault, place][rank]
        assert status == 3, text
        seconds, kind = re.search(r"^([\d.]+) (\w+): ", text, re.MULTILINE).groups()
        assert kind in ("CommunicationError", "DeadlineError"), text
        assert float(seconds) < 60, text
        assert place.replace("throw", "backward") in text, text  # what the rank was doing


def test_a_rank_that_throws_keeps_its_own_error(outcomes):
    status, text = outcomes["throw", "backward"][1]
    assert status == 4 and "own: the disk is full" in text
