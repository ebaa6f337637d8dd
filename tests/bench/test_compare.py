# SPDX-License-Identifier: Apache-2.0
"""Verdicts on samples whose answer is known, and refusals."""
import contextlib
import io
import json
import os
import random
import tempfile
import unittest
from unittest import mock

from bench_test import sample_result

import compare


def judge(a, b, better="lower", least=0.01):
    return compare.judge(a, b, better, least, "seed")


class Verdicts(unittest.TestCase):
    def test_the_same_samples(self):
        found = judge([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
        self.assertEqual((found["verdict"], found["difference"]), (compare.SAME, 0))
        self.assertTrue(found["low"] < 0 < found["high"])

    def test_direction(self):
        low, high = [10.0, 10.1, 10.2, 9.9, 9.8], [12.0, 12.1, 12.2, 11.9, 11.8]
        self.assertEqual(judge(low, high, "lower")["verdict"], compare.WORSE)
        self.assertEqual(judge(low, high, "higher")["verdict"], compare.BETTER)
        self.assertEqual(judge(high, low, "lower")["verdict"], compare.BETTER)
        self.assertEqual(judge(high, low, "higher")["verdict"], compare.WORSE)
        found = judge(low, high)
        self.assertAlmostEqual(found["difference"], 0.2)
        self.assertTrue(found["low"] <= 0.2 <= found["high"])

    def test_constant_samples(self):
        self.assertEqual(judge([5] * 5, [5] * 5)["verdict"], compare.SAME)
        found = judge([5] * 5, [6] * 5)
        self.assertEqual((found["verdict"], found["low"], found["high"]), (compare.WORSE, 0.2, 0.2))

    def test_nothing_grows_to_something(self):
        self.assertEqual(judge([0] * 5, [1] * 5)["verdict"], compare.WORSE)
        self.assertEqual(judge([0] * 5, [0] * 5)["verdict"], compare.SAME)

    def test_small_differences_are_none(self):
        a, b = [1000.0] * 5, [1005.0] * 5
        self.assertEqual(judge(a, b, least=0.01)["verdict"], compare.SAME)
        self.assertEqual(judge(a, b, least=0.001)["verdict"], compare.WORSE)

    def test_few_samples_say_nothing(self):
        found = judge([1, 1], [9, 9, 9])
        self.assertEqual((found["verdict"], found["low"]), (compare.FEW, None))

    def test_overlapping(self):
        """Medians differ by 10 %, samples by far more."""
        self.assertEqual(judge([60, 80, 100, 120, 140], [66, 88, 110, 132, 154])["verdict"], compare.SAME)

    def test_repeatable(self):
        a, b = [1, 2, 3, 5, 8], [2, 3, 5, 8, 13]
        self.assertEqual(judge(a, b), judge(a, b))

    def wrong(self, count, shift=1.0):
        """Of 200 pairs of runs, how many are called different."""
        draw = random.Random(7)
        found = 0
        with mock.patch.object(compare, "DRAWS", 1000):
            for number in range(200):
                a = [draw.gauss(100, 5) for _ in range(count)]
                b = [draw.gauss(100, 5) * shift for _ in range(count)]
                found += compare.judge(a, b, "lower", 0, number)["verdict"] != compare.SAME
        return found / 200

    def test_how_often_it_is_wrong(self):
        """Runs of one distribution; docs/bench.md says what is promised."""
        for count in 5, 10, 20:
            self.assertLessEqual(self.wrong(count), 0.09, count)

    def test_how_often_it_is_right(self):
        """Twenty percent worse, with a standard deviation of five, is always seen with ten samples."""
        self.assertGreaterEqual(self.wrong(10, 1.2), 0.99)


class Command(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def write(self, name, document):
        path = os.path.join(self.directory.name, name)
        with open(path, "w") as file:
            json.dump(document, file)
        return path

    def run_compare(self, a, b, *options):
        """(exit code, standard output, standard error)"""
        out, err = io.StringIO(), io.StringIO()
        argv = ["compare", self.write("a.json", a), self.write("b.json", b), *options]
        with mock.patch("sys.argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = compare.main()
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def test_exit_codes(self):
        fast = sample_result({"copy.time": [1.0, 1.1, 1.0]}, ratios={("copy.rate", "top.rate"): [0.9, 0.9, 0.9]})
        slow = sample_result({"copy.time": [2.0, 2.1, 2.0]}, ratios={("copy.rate", "top.rate"): [0.9, 0.9, 0.9]})
        code, out, _ = self.run_compare(fast, slow)
        self.assertEqual(code, 5)
        self.assertIn("worse in 1", out)
        self.assertIn("+100.0 %", out)
        self.assertEqual(self.run_compare(slow, fast)[0], 0)
        self.assertEqual(self.run_compare(fast, fast)[0], 0)
        self.assertEqual(self.run_compare(fast, {"schema": "other"})[0], 1)
        self.assertEqual(self.run_compare(fast, fast, "--least", "much")[0], 2)

    def test_a_ratio_can_be_worse(self):
        a = sample_result({"copy.time": [1, 1, 1]}, ratios={("copy.rate", "top.rate"): [0.8, 0.81, 0.8]})
        b = sample_result({"copy.time": [1, 1, 1]}, ratios={("copy.rate", "top.rate"): [0.5, 0.51, 0.5]})
        code, out, _ = self.run_compare(a, b, "--json")
        self.assertEqual(code, 5)
        row = json.loads(out)["rows"][1]
        self.assertEqual((row["name"], row["verdict"]), ("copy.rate/top.rate", compare.WORSE))

    def test_refusals(self):
        """Each difference in what was measured or where is named, and --force says it again and goes on."""
        def other(change):
            document = sample_result({"copy.time": [1, 1, 1]})
            change(document)
            return document
        plain = sample_result({"copy.time": [1, 1, 1]})
        for change, words in (
                (lambda d: d.update(subcommand="migrate"), "replicate and migrate"),
                (lambda d: d["options"].update(lanes=4), "lanes is 2 and 4"),
                (lambda d: d["options"].update(vms=2), "vms is None and 2"),
                (lambda d: d["environment"].update(cpu="Other"), "cpu is Some CPU and Other"),
                (lambda d: d["environment"].update(cores=64), "cores is 2 and 64"),
                (lambda d: d["environment"].update(kernel="Linux 7"), "Linux 7"),
                (lambda d: d["environment"].update(openssl="OpenSSL 4"), "OpenSSL 4"),
                (lambda d: d["environment"]["kvm"].update(usable=True), "kvm usable is False and True")):
            code, out, err = self.run_compare(plain, other(change))
            self.assertEqual((code, out), (4, ""), words)
            self.assertIn(words, err)
            code, out, err = self.run_compare(plain, other(change), "--force")
            self.assertEqual(code, 0, words)
            self.assertIn("in spite of", err)

    def test_what_is_no_difference(self):
        """The version and the load are not what was measured: comparing them is the point."""
        newer = sample_result({"copy.time": [1, 1, 1]})
        newer["tool"]["version"] = "9"
        newer["environment"]["load_average_before"] = [9, 9, 9]
        self.assertEqual(self.run_compare(sample_result({"copy.time": [1, 1, 1]}), newer)[0], 0)

    def test_figures_of_one_side_are_named(self):
        code, out, _ = self.run_compare(sample_result({"old.time": [1, 1, 1], "time": [1, 1, 1]}),
                                        sample_result({"new.time": [1, 1, 1], "time": [1, 1, 1]}))
        self.assertEqual(code, 0)
        self.assertIn("Only one of them has: old.time, new.time", out)


if __name__ == "__main__":
    unittest.main()
