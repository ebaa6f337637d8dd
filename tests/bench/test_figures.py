# SPDX-License-Identifier: Apache-2.0
"""Numbers of results: percentiles, buckets, sparklines, and files that are no results."""
import json
import math
import os
import tempfile
import unittest

from bench_test import figures, sample_result


class Numbers(unittest.TestCase):
    def test_sparkline(self):
        """The same samples as in tests/unit/test_bench.c."""
        self.assertEqual(figures.sparkline([1, 2, 3, 4, 8]), "▁▂▃▄█")
        self.assertEqual(figures.sparkline([7, 7]), "▄▄")
        self.assertEqual(figures.sparkline([]), "")

    def test_percentile(self):
        ordered = list(range(1, 101))
        self.assertEqual([figures.percentile(ordered, p) for p in (0, 1, 50, 90, 99, 99.5, 100)], [1, 1, 50, 90, 99, 100, 100])
        self.assertEqual(figures.percentile([5], 50), 5)

    def test_histogram_counts_everything(self):
        samples = [0.001 * i for i in range(1, 2001)] + [0.0, 1e6]
        found = figures.histogram(samples)
        self.assertEqual(found["count"], len(samples))
        self.assertEqual(sum(count for _, count in found["buckets"]), len(samples))
        self.assertEqual((found["min"], found["max"]), (0.0, 1e6))
        self.assertAlmostEqual(found["p50"], 1.0, places=2)

    def test_bucket_holds_its_value(self):
        for value in (1e-9, 0.3, 1, 1.01, 2, 5.5, 31, 33, 1000, 123456.7):
            top = figures.bucket_top(value)
            self.assertGreaterEqual(top, value)
            self.assertLessEqual(top, value * (1 + 1 / 32))
            self.assertEqual(figures.bucket_top(top), top)

    def test_quotients_keep_rounds_together(self):
        self.assertEqual(figures.quotients([1, 2, None, 4], [2, 0, 3, 8]), [0.5, 0.5])

    def test_squeeze(self):
        self.assertEqual(figures.squeeze([1, 2], 5), [1, 2])
        squeezed = figures.squeeze(list(range(1000)), 40)
        self.assertEqual((len(squeezed), squeezed), (40, sorted(squeezed)))

    def test_show(self):
        for value, unit, text in ((1234567, "B", "1.23 MB"), (0.012345, "ms", "0.0123 ms"), (0, "s", "0 s"), (51.26, "", "51.3"),
                                  (-1500, "B", "-1.50 kB"), (999, "B", "999 B")):
            self.assertEqual(figures.show(value, unit), text)


class Files(unittest.TestCase):
    def read(self, text):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "a.json")
            with open(path, "w") as file:
                file.write(text)
            return figures.read(path)

    def refuses(self, document, *words):
        text = document if isinstance(document, str) else json.dumps(document)
        with self.assertRaises(figures.NoResult) as caught:
            self.read(text)
        for word in ("a.json", *words):
            self.assertIn(word, str(caught.exception))

    def test_whole(self):
        document = sample_result({"copy.time": [1.0, 2.0, 3.0]})
        self.assertEqual(self.read(json.dumps(document)), document)

    def test_missing(self):
        with self.assertRaises(figures.NoResult) as caught:
            figures.read("/nonexistent/a.json")
        self.assertIn("No such file", str(caught.exception))

    def test_others(self):
        self.refuses("not json", "no JSON")
        self.refuses([], "list")
        self.refuses({}, "None")
        self.refuses({"schema": "understudy-bench/2"}, "understudy-bench/2")

    def test_broken(self):
        for spoil, word in (("options", "options"), ("environment", "environment"), ("ratios", "ratios")):
            document = sample_result({"copy.time": [1.0]})
            del document[spoil]
            self.refuses(document, word)
        for samples in [], [1, math.nan], [True], ["1"]:
            document = sample_result({"copy.time": samples})
            self.refuses(document)

    def test_noise_is_said(self):
        document = sample_result({"copy.time": [1.0]})
        self.assertIsNone(figures.noise_note(document))
        document["environment"]["noise"]["after"]["stolen_share"] = 0.4
        self.assertIn("40 %", figures.noise_note(document))
        self.assertIn("40 %", "\n".join(figures.lines(document)))


if __name__ == "__main__":
    unittest.main()
