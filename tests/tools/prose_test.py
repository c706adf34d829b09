"""scripts/check_prose.py: it finds each of its words, and what looks alike is left alone."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts"))
sys.dont_write_bytecode = True
from check_prose import ROOT, anchors_of, files_of_repository, problems_of  # noqa: E402


def problems(text, path="src/file.cpp"):
    return [problem for _, problem in problems_of(path, text)]


class Prose(unittest.TestCase):
    def test_finds_words(self):
        for line in ("int most_rows;", "int words_a_rank;", "// the card is busy", "// counted anew", "bool speaks;",
                     "/// Of a tile's rows.", "  // What a rank waits for", "int rows;  ///< Whether it owns them",
                     '    """Which tiles."""', "ptx::tensor_load(a);"):
            with self.subTest(line):
                self.assertEqual(len(problems(line)), 1, line)

    def test_leaves_other_words_alone(self):
        for line in ("int almost_done;", "int utmost_rows;", "int is_a_rank;", "// discarded cardinality",
                     "/// Offsets of rows.", "/// The number of rows, of which", "auto what = find(whether);"):
            with self.subTest(line):
                self.assertEqual(problems(line), [])

    def test_headings_may_ask(self):
        self.assertEqual(problems("## What was tried", "docs/page.md"), [])
        self.assertEqual(len(problems("a card", "docs/page.md")), 1)

    def test_finds_links_that_lead_nowhere(self):
        for target, count in (("DESIGN.md", 0), ("nowhere.md", 1), ("DESIGN.md#the-tree", 0), ("DESIGN.md#nowhere", 1),
                              ("https://nowhere.invalid", 0)):
            with self.subTest(target):
                self.assertEqual(len(problems(f"[text]({target})", "README.md")), count)
        self.assertEqual(problems("```\n[text](nowhere.md)\n```\n`[text](nowhere.md)`", "README.md"), [])

    def test_anchors_are_those_of_github(self):
        self.assertEqual(anchors_of("# One, two\n## What `x_y` is - now"), {"one-two", "what-x_y-is---now"})

    def test_lists_the_repository(self):
        self.assertIn("scripts/check_prose.py", files_of_repository())
        self.assertTrue(os.path.isfile(os.path.join(ROOT, "README.md")))


if __name__ == "__main__":
    unittest.main()
