"""bench/against_full_attention.py at sizes that take no time: what it writes, and that what fails leaves a dash."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

command, script = os.environ["CPNSA_COMMAND"], os.environ["CPNSA_SCRIPT"]
sys.path.insert(0, os.path.dirname(script))
sys.dont_write_bytecode = True
from svg import Lines, StackedBars, picture  # noqa: E402
from tables import length_name, ratio_table  # noqa: E402


def run(out, *flags):
    small = ["--heads", "2", "--kv-heads", "1", "--dk", "16", "--dv", "8", "--iterations", "1", "--device", "cpu"]
    small += ["--full", "none", "--lengths", "128,256", "--backward-to", "128", "--out", out]
    return subprocess.run([sys.executable, "-B", script, *small, *flags], capture_output=True, text=True)


class AgainstFullAttention(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_writes_every_length(self):
        outcome = run(self.folder, "--cpnsa", command)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        with open(self.path("results.json"), encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        self.assertEqual([row["tokens"] for row in rows], [128, 256])
        for selection in ("random", "local"):
            self.assertGreater(rows[0]["nsa"][selection]["backward"]["seconds"], 0)
            self.assertNotIn("backward", rows[1]["nsa"][selection])
        for name in ("time.svg", "stages.svg"):
            xml.etree.ElementTree.parse(self.path(name))

        again = run(self.folder, "--cpnsa", command)
        self.assertNotEqual(again.returncode, 0)
        self.assertIn("exists already", again.stderr)

    def test_a_failure_is_a_reason(self):
        for flags, reason in [(["--cpnsa", "/nowhere/cpnsa"], "/nowhere/cpnsa"), (["--cpnsa", command, "--kv-heads",
                              "3"], "num_kv_heads"), (["--cpnsa", command, "--time-limit", "0"], "time limit")]:
            with self.subTest(reason), tempfile.TemporaryDirectory() as folder:
                outcome = run(folder, *flags)
                self.assertEqual(outcome.returncode, 0, outcome.stderr)
                self.assertIn(reason, outcome.stdout.split("Not measured")[1])

    def test_ratio(self):
        row = {"tokens": 8192, "full": {"cudnn": {"forward": {"seconds": 0.006}}, "flash2": {"failed": "no kernel"}},
               "nsa": {"local": {"forward": {"seconds": 0.0015}}}}
        table = ratio_table({"setting": {"full": ["cudnn", "flash2"], "selections": ["local"]}, "rows": [row]})
        cells = [cell.strip() for cell in table.split("\n")[2].split("|")[1:-1]]
        self.assertEqual(cells, ["8K", "forward", "6.00", "-", "1.50", "4.00x", "-"])

    def test_bars_stack_to_their_sum(self):
        drawn = picture([StackedBars("", "", "", {"8K": {"a": 1.0, "b": 3.0}, "16K": {"a": 4.0}})])
        bars = [e for e in xml.etree.ElementTree.fromstring(drawn).iter() if e.tag.endswith("rect")]
        a, b, whole = (float(bar.get("height")) for bar in bars[1:4])
        self.assertAlmostEqual(a + b, whole, delta=0.2)
        self.assertAlmostEqual(b, 3 * a, delta=0.3)

    def test_lines_lie_on_their_axes(self):
        drawn = picture([Lines("", "", "", {"a": [(1, 1.0), (2, 2.0), (4, 4.0)]}, {}, log_y=False, level=(2, "two"))],
                        "title", "setting")
        shapes = list(xml.etree.ElementTree.fromstring(drawn).iter())
        xs, ys = ([float(e.get(key)) for e in shapes if e.tag.endswith("circle")] for key in ("cx", "cy"))
        self.assertAlmostEqual(xs[1] - xs[0], xs[2] - xs[1], delta=0.2)  # logarithmic
        self.assertAlmostEqual(2 * (ys[0] - ys[1]), ys[1] - ys[2], delta=0.3)  # from 0
        level = next(float(e.get("y1")) for e in shapes if e.get("stroke-dasharray"))
        self.assertAlmostEqual(level, ys[1], delta=0.1)
        texts = [e.text for e in shapes if e.tag.endswith("text")]
        self.assertLess({"title", "setting", "two", "a"}, set(texts))

    def test_lengths_have_names(self):
        self.assertEqual([length_name(n) for n in (1000, 1 << 10, 128 << 10, 1 << 20)], ["1000", "1K", "128K", "1M"])


if __name__ == "__main__":
    unittest.main()
