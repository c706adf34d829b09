"""bench/cluster.py on CPU ranks at sizes that take no time: that it runs everything, compares what it says it compares,
and says what it did not run."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

script, build, mpiexec = os.environ["CPNSA_SCRIPT"], os.environ["CPNSA_BUILD"], os.environ["CPNSA_MPIEXEC"]
sys.path.insert(0, os.path.dirname(script))
sys.dont_write_bytecode = True
from cluster import Session  # noqa: E402
from cluster_grid import grid  # noqa: E402
from cluster_report import exposed_seconds, report, scaling_table, wrong  # noqa: E402


def run(out, *flags):
    command = [sys.executable, "-B", script, "--device", "cpu", "--ranks", "2", "--build", build, "--out", out,
               "--launch", f"{mpiexec} --bind-to none -n {{ranks}}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def row(ranks, seconds, exchange_seconds=0.0, exchange="auto"):
    stages = dict.fromkeys(("compress", "compressed", "importance", "selected", "window", "gate"), 0.1)
    step = {"seconds": seconds, "stage_seconds": {**stages, "exchange": exchange_seconds}, "bytes_received": 1 << 20}
    entry = {"exchange": "gather", "forward": step, "tensor_bytes": 1 << 30, "workspace_bytes": 1 << 30}
    return {"tokens": 8192, "documents": 1, "selection": "local", "ranks": ranks, "partition": "zigzag",
            "exchange": exchange, "bench": {"rows": [entry], "hardware": "a card"}}


class Launch(unittest.TestCase):
    def test_a_node_is_filled_before_the_next(self):
        arguments = argparse.Namespace(launch="srun -N {nodes} -n {ranks} --ntasks-per-node={per_node}",
                                       ranks_per_node=8, time_limit=1)
        commands = [" ".join(Session(arguments).launched(ranks, "cpnsa")) for ranks in (1, 2, 8, 16, 24)]
        self.assertEqual(commands, [f"srun -N {nodes} -n {ranks} --ntasks-per-node={per_node} cpnsa"
                                    for nodes, ranks, per_node in
                                    ((1, 1, 1), (1, 2, 2), (1, 8, 8), (2, 16, 8), (3, 24, 8))])


class Cluster(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = os.path.join(folder.name, "out")

    def test_runs_everything(self):
        outcome = run(self.out)
        self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)
        with open(os.path.join(self.out, "results.json"), encoding="utf-8") as file:
            results = json.load(file)
        self.assertEqual(len(results["layers"]), 5)
        self.assertTrue(all(layer["same_indices"] for layer in results["layers"]))
        self.assertEqual(len(results["rows"]), len(grid([1, 2], True)))
        self.assertEqual({row["bench"]["ranks"] for row in results["rows"]}, {1, 2})
        self.assertTrue(results["provenance"]["version"])
        self.assertEqual({len(row["bench"]["provenance"]["hosts"]) for row in results["rows"]}, {1, 2})
        self.assertEqual({row["bench"]["documents"] for row in results["rows"]}, {1, 8, 16})
        self.assertIn("of ideal", outcome.stdout)
        xml.etree.ElementTree.parse(os.path.join(self.out, "scaling.svg"))

        again = run(self.out)
        self.assertNotEqual(again.returncode, 0)
        self.assertIn("exists already", again.stderr)

    def test_what_has_no_time_is_listed(self):
        outcome = run(self.out, "--time-limit", "0")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("out of time", outcome.stdout)
        self.assertIn("0 of 5", outcome.stdout)

    def test_a_launcher_that_fails_is_a_failure(self):
        outcome = run(self.out, "--launch", "false {ranks}", "--time-limit", "30")
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("status 1", outcome.stdout)

    def test_shares_and_exposed_time(self):
        rows = [row(1, 4.0), row(4, 1.25, 0.7), row(4, 1.6, 0.7, exchange="fetch")]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in scaling_table(rows).split("\n")[2:]]
        self.assertEqual([line[8] for line in cells], ["100 %", "80 %", "62 %"])
        self.assertEqual([line[5] for line in cells], ["auto: gather", "auto: gather", "fetch"])
        self.assertAlmostEqual(exposed_seconds(rows[1]["bench"]["rows"][0]["forward"]), 0.65)

    def test_other_indices_are_wrong(self):
        results = {"layers": [{"ran": True, "same_indices": False}], "failures": [], "rows": [], "suites": [],
                   "examples": [], "date": "", "ranks": 2, "launch": ""}
        self.assertTrue(wrong(results))
        self.assertIn("0 of 1", report(results))
        results["layers"][0]["same_indices"] = True
        self.assertFalse(wrong(results))


if __name__ == "__main__":
    unittest.main()
