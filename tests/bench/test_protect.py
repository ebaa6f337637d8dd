# SPDX-License-Identifier: Apache-2.0
"""`understudy bench protect` without a guest: what is made of what was measured, and which options go together."""
import contextlib
import io
import unittest

from bench_test import figures, need_schema, result_of, validate

import protect
import protect_bare_report
import protect_report


def times(*counts, bounds=(0.5, 1.0, 2.0), p50=0.4, p99=2.5, most=3.0):
    """As `status` has them: how many were at most each bound, and in all."""
    *cumulative, whole = counts
    return {"p50": p50, "p99": p99, "max": most, "last": most, "sum": whole * p50, "count": whole,
            "buckets": [list(pair) for pair in zip(bounds, cumulative)]}


class OfStatus(unittest.TestCase):
    def test_every_sample_is_in_one_bucket(self):
        found = figures.of_status(times(6, 6, 9, 10))
        self.assertEqual(found["buckets"], [[0.5, 6], [2.0, 3], [3.0, 1]])
        self.assertEqual((found["count"], found["min"], found["p50"], found["p90"], found["p99"], found["max"]),
                         (10, 0.0, 0.4, 2.0, 2.5, 3.0))

    def test_bounds_are_all_that_is_known(self):
        found = figures.of_status(times(0, 0, 4, 4, p50=1.2, p99=1.3, most=1.3))
        self.assertEqual((found["min"], found["p90"], found["max"]), (1.0, 1.3, 1.3))
        found = figures.of_status(times(0, 0, 0, 2, p50=9.0, p99=9.5, most=9.5))
        self.assertEqual((found["min"], found["buckets"]), (2.0, [[9.5, 2]]))

    def test_nothing_yet(self):
        self.assertIsNone(figures.of_status(times(0, 0, 0, 0)))


class Options(unittest.TestCase):
    def refuses(self, *argv):
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
            protect.parse_options(argv)
        self.assertEqual(end.exception.code, 2)
        return said.getvalue()

    def test_each_guest_has_its_own(self):
        self.assertIn("--rate is not for --guest redis", self.refuses("--rate", "5"))
        self.assertIn("--clients is not for --guest bare", self.refuses("--guest", "bare", "--clients", "5"))
        self.assertIn("--working-set is not", self.refuses("--working-set", "5M"))

    def test_nonsense(self):
        for argv in (["--vmm", "xen"], ["--cpus", "17"], ["--cpus", "1,"], ["--rate", "0"], ["--rate", "fast"],
                     ["--working-set", "3G"], ["--working-set", "10K"], ["--seconds", "0"]):
            self.assertTrue(self.refuses("--guest", "bare", *argv))

    def test_defaults(self):
        self.assertEqual((protect.parse_options([]).requests, protect.parse_options(["--quick"]).requests), (5000, 2000))
        options = protect.parse_options(["--guest", "bare", "--cpus", "1,4,1", "--rate", "max,10"])
        self.assertEqual((options.vmm, options.cpus, options.rate, options.rounds), (["kvm", "qemu"], [1, 4], ["max", "10"], 5))


@need_schema
class Redis(unittest.TestCase):
    def test_protect(self):
        def row(rate):
            return {"redis_rounds": [{"rps": rate * n, "p50_latency_ms": 1.0, "p99_latency_ms": 2.0, "min_latency_ms": 0.5,
                                      "max_latency_ms": 2.5, "buckets": [[1.0, 8], [n + 1.0, 2]]} for n in (1, 2, 3)],
                    "wire_bytes": 10**9, "wire_bytes_per_request": 100.0, "checkpoints": 100,
                    "pause_ms": times(6, 6, 9, 10), "output": {"delay_ms": times(0, 0, 0, 0)}, "cpu_s": {"alpha": 2.0, "beta": 1.0},
                    "memory_bytes": {"alpha": 5, "beta": 6}}
        own = {"rows": {name: row(50 if name.endswith("unprotected") else 20) for name in protect_report.ROWS}, "takeovers": []}
        document = result_of("protect", protect_report.describe, own, clients=50)
        validate(document)
        ratio, = [one for one in document["ratios"] if one["of"] == "protected.rps"]
        self.assertEqual(ratio["samples"], [0.4, 0.4, 0.4])
        latency, = [one for one in document["histograms"] if one["name"] == "protected.latency"]
        self.assertEqual(latency["buckets"], [[1.0, 24], [2.0, 2], [3.0, 2], [4.0, 2]])
        self.assertEqual((latency["count"], latency["p50"], latency["p90"], latency["p99"], latency["min"], latency["max"]),
                         (30, 1.0, 2.5, 2.5, 0.5, 2.5))
        cpu, = [one for one in document["figures"] if one["name"] == "protected.cpu_checkpoint_primary"]
        self.assertEqual(cpu["samples"], [20.0])
        self.assertEqual(document["timelines"], [])

    def test_redis_benchmark(self):
        text = """
====== SET ======
  20 requests completed in 0.11 seconds

Latency by percentile distribution:
0.000% <= 0.031 milliseconds (cumulative count 1)
50.000% <= 0.135 milliseconds (cumulative count 11)
99.951% <= 5.703 milliseconds (cumulative count 20)
100.000% <= 5.703 milliseconds (cumulative count 20)

Cumulative distribution of latencies:
30.900% <= 0.103 milliseconds (cumulative count 6)
30.900% <= 0.133 milliseconds (cumulative count 6)
100.000% <= 6.103 milliseconds (cumulative count 20)

Summary:
  throughput summary: 18348.62 requests per second
  latency summary (msec):
          avg       min       p50       p95       p99       max
        0.353     0.024     0.135     1.703     4.463     5.703
"""
        found = protect_report.parse_redis_benchmark(text)
        self.assertEqual(found.pop("buckets"), [[0.031, 1], [0.103, 5], [0.135, 5], [5.703, 9]])
        self.assertEqual(found, {"rps": 18348.62, "avg_latency_ms": 0.353, "min_latency_ms": 0.024, "p50_latency_ms": 0.135,
                                 "p95_latency_ms": 1.703, "p99_latency_ms": 4.463, "max_latency_ms": 5.703})
        for broken in "", text.replace("throughput", ""), text.partition("Summary")[0]:
            with self.assertRaisesRegex(AssertionError, "redis-benchmark"):
                protect_report.parse_redis_benchmark(broken)


def bare_round(number, **more):
    return {"seconds": 2.0, "writes_per_s": 100.0 * number, "stops_ms": [1.0, 2.0 * number], "silence_ms": 30.0, **more}


def bare_row(vmm, pause, captured=1000):
    rounds = [bare_round(n, pause_mean_ms=pause * n, checkpoints=50, checkpoints_per_s=25.0, pages_captured=captured,
                         wire_bytes_per_s=1e6, cpu_s={"alpha": 0.5, "beta": 0.25}, vmm_cpu_s=0.125) for n in (1, 2, 3)]
    return {"vmm": vmm, "cpus": 2, "rate": "max", "base": [bare_round(2 * n) for n in (1, 2, 3)],
            "rounds": rounds, "wire_bytes_per_s": 1e6, "pause_ms": times(6, 6, 9, 10), "dirty_pages": {"p50": 4},
            "output": {"delay_ms": times(0, 0, 4, 4)}, "memory_bytes": {"alpha": 5, "beta": 6}}


@need_schema
class Bare(unittest.TestCase):
    def described(self, *rows, accelerator="kvm", left_out=()):
        document = result_of("protect", protect_bare_report.describe, {
            "rows": {f"{row['vmm']}-2cpu-max": row for row in rows}, "accelerator": accelerator,
            "left_out": list(left_out)}, working_set=16, pattern="random",
            write="line", data="random", interval=25, rounds=3, seconds=2)
        validate(document)
        return document, {one["name"]: one["samples"] for one in document["figures"]}, {
            (one["of"], one["to"]): one["samples"] for one in document["ratios"]}

    def test_beside_itself_and_beside_qemu(self):
        document, found, ratios = self.described(bare_row("kvm", 0.5), bare_row("qemu", 5.0))
        self.assertEqual(ratios["kvm-2cpu-max.written", "kvm-2cpu-max.base_written"], [0.5, 0.5, 0.5])
        for sample in ratios["kvm-2cpu-max.pause_mean", "qemu-2cpu-max.pause_mean"]:
            self.assertAlmostEqual(sample, 0.1)
        self.assertEqual(found["kvm-2cpu-max.stop"], [2.0, 4.0, 6.0])
        self.assertEqual(found["kvm-2cpu-max.carried"], [1000 * 4096 / 2] * 3)
        self.assertAlmostEqual(found["kvm-2cpu-max.cpu_primary"][0], 0.5 / (1000 * 4096 / 1e9))
        histograms = {one["name"] for one in document["histograms"]}
        self.assertEqual(histograms, {f"{vmm}-2cpu-max.{name}" for vmm in ("kvm", "qemu")
                                      for name in ("pause", "delay", "stops", "base_stops")})
        self.assertIn("own VMM, 2 vCPUs, as fast as it can", protect_bare_report.table(document))

    def test_what_tcg_does_not_show(self):
        """A guest whose clock stops with it sees no stop; nothing captured has no cost for a GB."""
        document, found, ratios = self.described(bare_row("qemu", 5.0, captured=0), accelerator="tcg", left_out=["no /dev/kvm"])
        self.assertEqual(document["environment"]["accelerator"], "tcg")
        self.assertEqual(document["notes"], ["no /dev/kvm"])
        self.assertFalse([name for name in found if "stop" in name or "cpu_primary" in name])
        self.assertEqual([pair for pair in ratios if pair[0].split(".")[0] != pair[1].split(".")[0]], [])
        self.assertTrue(protect_bare_report.table(document))


if __name__ == "__main__":
    unittest.main()
