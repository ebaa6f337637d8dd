# SPDX-License-Identifier: Apache-2.0
"""Which points are measured, and what is expected of them."""
import unittest
from types import SimpleNamespace
from unittest import mock

from bench_test import need_schema, result_of, sample_result, validate

import scale
import scale_vcpus

OPTIONS = SimpleNamespace(lanes=3, sizes=[256 << 20, 1 << 30], vms=2, epoch_size=16 << 20)


class Points(unittest.TestCase):
    def test_lines_share_their_beginning(self):
        found, left_out = scale.points(OPTIONS, 64 << 30)
        self.assertEqual(left_out, [])
        self.assertEqual([(point["lanes"], point["size"] >> 20, point["vms"], lines) for point, lines in found], [
            (1, 256, 1, ["lanes", "size", "vms"]), (2, 256, 1, ["lanes"]), (3, 256, 1, ["lanes"]), (1, 1024, 1, ["size"]),
            (1, 256, 2, ["vms"])])

    def test_what_has_no_room_is_named(self):
        found, left_out = scale.points(OPTIONS, 1500 << 20)
        self.assertEqual([point["size"] >> 20 for point, _ in found], [256, 256, 256])
        self.assertEqual(len(left_out), 2)
        self.assertIn("size 1024 MiB left out: needs 2.3 GB", left_out[0])
        self.assertIn("vms 2 left out", left_out[1])

    def test_linear_ends_with_the_cores(self):
        self.assertEqual([scale.linear("lanes", n, 2.0, 8) for n in (1, 2, 4, 5, 16)], [1, 2, 4, 4, 4])
        self.assertEqual(scale.linear("vms", 3, 1.6, 2), 1.25)
        self.assertEqual(scale.linear("lanes", 2, 2.5, 2), 1)  # it uses more than there is: no less is expected
        self.assertEqual(scale.linear("size", 1 << 30, 2.0, 2), 1)

    def test_busy_cores(self):
        document = sample_result({"epochs.throughput": [2.0, 1.0], "epochs.cpu_primary": [0.5, 0.5],
                                  "epochs.cpu_standby": [0.25, 0.5]})
        self.assertEqual(scale.busy_cores(document, "epochs"), [1.5, 1.0])
        self.assertEqual(scale.busy_cores(document, "first_copy"), [])


class Vcpus(unittest.TestCase):
    def test_counts(self):
        self.assertEqual([scale_vcpus.counts(most) for most in (0, 1, 2, 3, 8, 12)],
                         [[], [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]])

    def test_what_cannot_be_measured_is_named(self):
        for wanted, why, notes in (0, "no /dev/kvm", []), (4, "no /dev/kvm", ["vCPUs left out: no /dev/kvm"]):
            with mock.patch.object(scale_vcpus, "obstacle", lambda _, why=why: why):
                self.assertEqual(scale_vcpus.measure(SimpleNamespace(vcpus=wanted), None), (None, notes))

    @need_schema
    def test_curves(self):
        """Of what protect found; without it there is no curve, and no word in the table."""
        names = [f"kvm-{cpus}cpu-1000.{key}" for cpus in (1, 4) for key, *_ in scale_vcpus.FIGURES]
        found = {**sample_result({name: [1.0, 2.0] for name in names}), "rows": {f"kvm-{cpus}cpu-1000": {
            "cpus": cpus, "pause_ms": {"p50": 0.5, "p99": 2.0}, "checkpoints_per_s": 40.0, "dirty_pages": {"p50": 9}}
            for cpus in (1, 4)}}
        document = result_of("scale", lambda result, own: scale_vcpus.describe(result, own["vcpus"]), {"vcpus": found}, vcpus=4)
        validate(document)
        self.assertEqual([(one["name"], one["x"]) for one in document["figures"] if "mean" in one["name"]],
                         [("vcpus-1.pause_mean", 1), ("vcpus-4.pause_mean", 4)])
        self.assertEqual((len(scale_vcpus.table(found)), scale_vcpus.table(None)), (5, []))


if __name__ == "__main__":
    unittest.main()
