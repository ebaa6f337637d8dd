# SPDX-License-Identifier: Apache-2.0
"""The page: everything is in it, nothing is fetched, and a browser has nothing to say."""
import html
import os
import re
import tempfile
import unittest

from bench_test import figures, sample_result

import browser
import page
import plots


def whole():
    """A result with one of each plot, and names that want escaping and wrapping."""
    document = sample_result({"copy.time": [1.0, 2.0, 3.5], "copy.more": [2.0, 2.0, 2.5], "alone": [7]},
                             ratios={("copy.rate", "top.rate"): [0.9, 1.1, 0.8], ("copy.rate", "peer.rate"): [3, 2.5]})
    document["figures"] += [{"name": f"lanes-{x}.{who}", "title": f"{x} lanes <b>&", "unit": "GB/s", "better": "higher",
                             "group": "by lanes", "who": who, "x": x, "x_title": "lanes", "samples": [x * 0.9, x]}
                            for x in (1, 2, 4) for who in ("ours", "base")]
    document["figures"].append({"name": "wire", "title": "a figure with a name that is longer than any screen is wide, " * 4,
                                "unit": "B", "better": "lower", "group": "wire", "who": "peer", "samples": [1e6, 2e9]})
    document["histograms"] = [{"name": "pause", "title": "pauses", "unit": "ms", "better": "lower",
                               **figures.histogram([0.1 * i for i in range(1, 300)] + [0])},
                              {"name": "one", "title": "one", "unit": "ms", "better": "lower", **figures.histogram([3])}]
    document["timelines"] = [{"title": "takeover", "unit": "ms", "rows": [
        {"title": f"kill {i}", "parts": [{"name": name, "length": i} for name in "abcdefghi"]} for i in (0, 1, 2)]}]
    document["notes"] = ["</section><script>alert(1)</script>"]
    document["environment"]["noise"]["after"]["stolen_share"] = 0.5
    return document


class Page(unittest.TestCase):
    def test_all_is_there(self):
        document = whole()
        found = page.render(document)
        for figure in document["figures"] + document["ratios"]:
            self.assertIn(html.escape(figure["title"]), found)
            self.assertIn(", ".join(f"{sample:.6g}" for sample in figure["samples"]), found)
        self.assertIn("others had 50 %", found)
        self.assertIn("Linux 6.9", found)
        for mark in ("curve ours", "curve base", "column", "part0", "part6", "bar good", "bar plain", "dot peer", "median ours",
                     "spark"):
            self.assertIn(f'class="{mark}"', found)

    def test_nothing_gets_out_or_in(self):
        found = page.render(whole())
        self.assertIsNone(re.search(r"<script|<img|<iframe|@import|url\(|\ssrc=|http-equiv=.refresh", found))
        self.assertEqual(set(re.findall(r'href="([^"]*)"', found)), {"data:,"})
        self.assertEqual(set(re.findall(r"\bhttps?://[^\s\"<]+", found)), set())
        self.assertIn("&lt;script&gt;", found)

    def test_extremes(self):
        """Zeroes, single samples, huge and tiny numbers: no division by nothing, nothing outside its plot."""
        for samples in [0], [0, 0, 0], [1e-12], [1e18, 0], [-1, 2]:
            document = sample_result({"a": samples, "b": samples}, ratios={("a", "b"): samples})
            for place in re.findall(r'c?x[12]?="(-?[\d.]+)%"', page.render(document)):
                self.assertTrue(0 <= float(place) <= 100)

    def test_ticks(self):
        for most in (1e-9, 0.3, 1, 1.0001, 7, 99.9, 1e12):
            ticks = plots.nice_ticks(most)
            self.assertGreaterEqual(ticks[-1], most * (1 - 1e-9))
            self.assertTrue(2 <= len(ticks) <= 7, (most, ticks))

    def test_short(self):
        self.assertEqual(page.short("1 GiB: downtime, QEMU, TLS", "1 GiB: downtime"), "QEMU, TLS")
        self.assertEqual(page.short("epochs: throughput", "throughput"), "epochs")
        self.assertEqual(page.short("throughput", "throughput"), "throughput")
        titles = ["1 GiB, idle: wire, ours to QEMU", "1 GiB, idle: wire, ours to QEMU, TLS"]
        self.assertEqual(page.common(titles), "1 GiB, idle: wire")
        self.assertEqual(page.common(["alone, it"]), "")


@unittest.skipUnless(browser.PROGRAM, "chromium is not installed")
class InABrowser(unittest.TestCase):
    def test_page(self):
        """Wide and narrow, light and dark: no word on the console, no request but the page, no sideways scrolling."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "a.html")
            page.write(whole(), path)
            chromium = browser.Browser()
            try:
                for width, dark in ((1280, False), (400, True)):
                    chromium.open(path, width, dark)
                    self.assertEqual(chromium.complaints(), [])
                    self.assertEqual(chromium.requests(), [f"file://{path}"])
                    self.assertLessEqual(chromium.value("document.documentElement.scrollWidth"), width)
                    paper = chromium.value("getComputedStyle(document.body).backgroundColor")
                    self.assertEqual(paper, "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
            finally:
                chromium.close()

    def test_the_check_sees(self):
        """A page that fetches and complains is found out."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "b.html")
            with open(path, "w") as file:
                file.write('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>'
                           '<div style="width:3000px">wide</div>')
            chromium = browser.Browser()
            try:
                chromium.open(path, 400)
                self.assertTrue(chromium.complaints())
                self.assertIn("http://127.0.0.1:9/x.png", chromium.requests())
                self.assertGreater(chromium.value("document.documentElement.scrollWidth"), 400)
            finally:
                chromium.close()


if __name__ == "__main__":
    unittest.main()
