"""Ranks that are killed, stopped, leave or throw: that the job ends, and that its error names the rank, the call, the
layer and the operation."""

import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

faulty_rank, command, mpiexec = (os.environ[name] for name in ("CPNSA_FAULTY_RANK", "CPNSA_COMMAND", "CPNSA_MPIEXEC"))
flight_record = os.environ["CPNSA_FLIGHT_RECORD"]
limit = 60  # seconds: a job that has not ended then waits for ever


def start(program, ranks, *flags, **environment):
    return subprocess.Popen([mpiexec, *flags, "-n", str(ranks), *program], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "CPNSA_DEADLINE": "2", **environment})


def end(process):
    """Exit status and the lines that the programs themselves wrote to standard error."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError("the job did not end") from None
    lines = [line for line in err.splitlines() if re.match(r"(faulty_rank|cpnsa): error: ", line)]
    return process.returncode, lines, out


def process_of_rank(rank, launcher):
    """The process of this rank among the launcher's children, once it is there."""
    stop = time.monotonic() + limit
    while time.monotonic() < stop:
        for path in glob.glob("/proc/[0-9]*/environ"):
            process = int(path.split("/")[2])
            try:
                with open(path, "rb") as file:
                    variables = file.read().split(b"\0")
                with open(f"/proc/{process}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == launcher and f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables:
                return process
        time.sleep(0.05)
    raise AssertionError(f"found no process of rank {rank}")


def handles(process, number):
    with open(f"/proc/{process}/status") as file:
        caught = re.search(r"SigCgt:\s*(\w+)", file.read()).group(1)
    return bool(int(caught, 16) & 1 << (number - 1))


def stop_when_connected(rank, launcher, folder):
    """Stops the rank's process once MPI has started, which the flight record that SIGUSR1 asks for shows."""
    process = process_of_rank(rank, launcher)
    stop = time.monotonic() + limit
    while not glob.glob(f"{folder}/cpnsa-*-rank{rank}.json"):
        if time.monotonic() > stop:
            raise AssertionError("found no flight record")
        if handles(process, signal.SIGUSR1):
            os.kill(process, signal.SIGUSR1)
        time.sleep(0.1)
    os.kill(process, signal.SIGSTOP)


class Faults(unittest.TestCase):
    def fault(self, rank, what, where, *flags, ranks=3, **environment):
        status, lines, out = end(start([faulty_rank, str(rank), what, where], ranks, *flags, **environment))
        if "--enable-recovery" not in flags:  # whose launcher reports nothing
            self.assertNotEqual(status, 0)
        self.assertNotIn("done", out)
        return lines

    def check_text(self, lines, rank, call):
        self.assertTrue(lines)
        for line in lines:
            self.assertRegex(line, rf"\brank {rank}\b")
            self.assertRegex(line, rf"\[(after )?{call}.*, operation \d+: \w+")

    def test_stopped(self):
        for rank, where, call in ((0, "plan", "plan of layer 1"), (1, "forward", "forward of layer 1, call 1"),
                                  (1, "backward", "backward of layer 1, call 2")):
            with self.subTest(rank=rank, where=where):
                lines = self.fault(rank, "stop", where)
                self.check_text(lines, rank, call)
                self.assertTrue(all(f"waited 2000 ms for rank {rank} [" in line for line in lines), lines)

    def test_ended_where_the_launcher_leaves_the_others(self):
        for what, where, call in (("kill", "forward", "forward of layer 1, call 1"),
                                  ("exit", "between", "backward of layer 1, call 2")):
            with self.subTest(what=what, where=where):
                lines = self.fault(1, what, where, "--enable-recovery", CPNSA_DEADLINE="1000")
                self.check_text(lines, 1, call)
                self.assertTrue(all("whose process" in line for line in lines), lines)

    def test_killed(self):
        self.fault(1, "kill", "backward", CPNSA_DEADLINE="1000")  # the launcher may end the job before a rank prints

    def test_leaves(self):
        self.check_text(self.fault(1, "leave", "plan"), 1, "plan of layer 1")

    def test_throws(self):
        for what, where, call in (("throw", "forward", "forward of layer 1, call 1"),
                                  ("throw_int", "backward", "backward of layer 1, call 2"),
                                  ("throw", "between", "the disk is full")):
            with self.subTest(what=what, where=where):
                lines = self.fault(1, what, where, CPNSA_DEADLINE="1000" if where != "between" else "2")
                self.assertTrue(any(call in line for line in lines), lines)

    def test_flight_record_says_who_was_behind(self):
        with tempfile.TemporaryDirectory() as folder:
            self.fault(1, "stop", "forward", CPNSA_TRACE=folder)
            outcome = subprocess.run([sys.executable, "-B", flight_record, folder], capture_output=True, text=True)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            self.assertRegex(outcome.stdout, r"group \w+: [23] of 3 ranks, mpi\n")
            self.assertRegex(outcome.stdout, r"rank 0 +#\d+ +forward of layer 1, call 1, operation \d+: ")
            self.assertIn("behind: rank 1 (", outcome.stdout)  # a launcher may continue it before it ends it

    def test_stopped_before_the_job_has_started(self):
        for rank in (0, 1):
            with self.subTest(rank=rank):
                process = start([command, "bench", "-b", "256", "-e", "256", "-n", "1000000", "--deadline", "2"], 2)
                os.kill(process_of_rank(rank, process.pid), signal.SIGSTOP)
                status, lines, _ = end(process)
                self.assertNotEqual(status, 0)
                self.assertTrue(lines)

    def test_the_command_ends_by_its_deadline(self):
        for rank in (0, 1):
            with self.subTest(rank=rank), tempfile.TemporaryDirectory() as folder:
                process = start([command, "bench", "-b", "256", "-e", "256", "-n", "1000000", "--deadline", "1"], 2,
                                CPNSA_DEADLINE="1000", CPNSA_TRACE=folder)
                stop_when_connected(rank, process.pid, folder)
                status, lines, _ = end(process)
                self.assertNotEqual(status, 0)
                self.assertTrue(any(f"rank {rank}" in line for line in lines), lines)


class Settings(unittest.TestCase):
    def run_command(self, *arguments, **environment):
        return subprocess.run([command, "bench", "-b", "64", "-e", "64", "-n", "1", *arguments], capture_output=True,
                              text=True, timeout=limit, env={**os.environ, **environment})

    def test_a_deadline_that_is_no_number_is_refused(self):
        for value in ("", "5s", "0", "-1", "1e3", "1000001"):
            outcome = self.run_command(CPNSA_DEADLINE=value)
            self.assertEqual(outcome.returncode, 1, value)
            self.assertIn(f'CPNSA_DEADLINE: found "{value}", expected whole seconds', outcome.stderr)

    def test_a_launchers_variable_without_the_launcher(self):
        outcome = self.run_command(PMI_RANK="1")
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("PMI_RANK: found 1, expected 0, as MPI says", outcome.stderr)

    def test_more_ranks_than_memory(self):
        outcome = self.run_command("--ranks", "2", "--hidden", "100000000")
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("--ranks: found 2 on this host", outcome.stderr)


if __name__ == "__main__":
    unittest.main()
