# SPDX-License-Identifier: Apache-2.0
"""Every subcommand's result is what bench/schema.json says: those that need no guest by running them, the others from what
they would have measured. (tests/integration/test_bench.py runs these.) UNDERSTUDY names the program."""
import copy
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

from bench_test import environment, figures, jsonschema, need_schema, result_of, sample_result, schema, validate

import migrate
import migrate_report
import takeover

UNDERSTUDY = os.environ.get("UNDERSTUDY")
need_program = unittest.skipUnless(UNDERSTUDY, "UNDERSTUDY does not name the program")


def bench(*argv):
    done = subprocess.run([UNDERSTUDY, "bench", *argv], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@need_schema
class Schema(unittest.TestCase):
    def test_itself(self):
        jsonschema.Draft202012Validator.check_schema(schema())
        validate(sample_result({"a.b": [1]}))

    def test_refuses(self):
        """Each of these is a mistake that somebody may make."""
        def spoil(change):
            document = copy.deepcopy(sample_result({"a.b": [1]}, ratios={("a.b", "c.d"): [1]}))
            change(document)
            with self.assertRaises(jsonschema.ValidationError):
                validate(document)
        spoil(lambda d: d.update(schema="understudy-bench/0"))
        spoil(lambda d: d.update(subcommand="replicates"))
        spoil(lambda d: d.update(figures=[]))
        spoil(lambda d: d["figures"][0].update(better="more"))
        spoil(lambda d: d["figures"][0].update(name="A figure"))
        spoil(lambda d: d["figures"][0].update(samples=[]))
        spoil(lambda d: d["figures"][0].update(samples=["1"]))
        spoil(lambda d: d["figures"][0].update(x=1))
        spoil(lambda d: d["figures"][0].update(median=1))
        spoil(lambda d: d["ratios"][0].pop("to"))
        spoil(lambda d: d["environment"]["noise"].pop("after"))
        spoil(lambda d: d["environment"].pop("liburing"))

    @need_program
    def test_replicate(self):
        for more in [], ["--pattern", "sparse", "--vms", "2"], ["--epochs", "0"]:
            document = json.loads(bench("replicate", "--size", "4M", "--rounds", "2", "--epochs", "3", "--epoch-size", "1M",
                                        "--json", *more))
            validate(document)
            self.assertTrue(all(len(figure["samples"]) == 2 for figure in document["figures"]))
            self.assertEqual(document["options"]["vms"], 2 if "--vms" in more else 1)

    @need_program
    def test_replicate_writes_files(self):
        with tempfile.TemporaryDirectory() as directory:
            out, page = os.path.join(directory, "a.json"), os.path.join(directory, "a.html")
            said = bench("replicate", "--size", "2M", "--rounds", "2", "--epochs", "0", "--json", out, "--html", page)
            self.assertIn("first copy", said)
            with open(out) as file:
                validate(json.load(file))
            with open(page) as file:
                self.assertIn("understudy bench replicate", file.read())
            self.assertIn("first copy: throughput", bench("report", out))

    @need_program
    def test_scale(self):
        document = json.loads(bench("scale", "--quick", "--lanes", "2", "--vms", "2", "--sizes", "4M,8M,1024G", "--epoch-size", "1M",
                                    "--rounds", "3", "--vcpus", "0", "--json"))
        validate(document)
        self.assertEqual([one["point"] for one in document["points"]],
                         [{"lanes": lanes, "size": mib << 20, "vms": vms} for lanes, mib, vms in
                          ((1, 4, 1), (2, 4, 1), (1, 8, 1), (1, 4, 2))])
        self.assertIn("1.04858e+06 MiB left out", " ".join(document["notes"]))
        for one in document["points"]:
            validate(one["result"])

    def test_environment_is_of_this_machine(self):
        if UNDERSTUDY:
            found = figures.environment(UNDERSTUDY)
            self.assertEqual(found["cores"], len(os.sched_getaffinity(0)))
            self.assertTrue(found["kvm"]["usable"] or found["kvm"]["why"])
            self.assertLessEqual(set(environment()) - {"load_average_after"}, set(found))


def move(number, total, **told):
    return {"round": number, "total_s": total, "downtime_ms": 10 * total, "console_gap_ms": 30.0, "wire_bytes": 1000, "told": told,
            "throughput_bytes_per_s": 1.0, "cpu_source_s": 0.5, "cpu_destination_s": 0.25, "memory_source_bytes": 1 << 20,
            "memory_destination_bytes": 1 << 21}


@need_schema
class Described(unittest.TestCase):
    def test_migrate_pairs_rounds(self):
        """A round that one variant failed is in no ratio, and moves nothing else."""
        row = {"memory_bytes": 1 << 30, "dirty_bytes_per_s": 0, "variants": {
            "understudy": {"moves": [move(n, total, downtime_parts_ms={"stop": 1.0, "load": 2.0})
                                     for n, total in ((0, 1.0), (1, 2.0), (2, 6.0))]},
            "qemu": {"moves": [move(0, 2.0), move(2, 3.0)]}, "qemu-tls": {"moves": []}}}
        document = result_of("migrate", migrate_report.describe, {"rows": [row], "left_out": ["a note"]}, rounds=3)
        validate(document)
        ratio, = [one for one in document["ratios"] if one["to"] == "1024m-idle.qemu.total"]
        self.assertEqual((ratio["samples"], ratio["better"], ratio["who"]), ([0.5, 2.0], "lower", "peer"))
        names = [figure["name"] for figure in document["figures"]]
        self.assertIn("1024m-idle.understudy.cpu_source", names)
        self.assertFalse(any("qemu-tls" in name for name in names))
        self.assertEqual(len(document["timelines"][0]["rows"]), 3)
        cpu, = [one for one in document["figures"] if one["name"] == "1024m-idle.qemu.cpu_source"]
        self.assertAlmostEqual(cpu["samples"][0], 0.5 / (2**30 / 1e9))

    def test_migrate_tells_of_pacing(self):
        with tempfile.NamedTemporaryFile("w") as file:
            for name, notes in ("cubic", 0), ("bbr", 1), ("bbr2", 1):
                file.seek(0)
                file.truncate()
                file.write(name + "\n")
                file.flush()
                self.assertEqual(len(migrate.pacing(file.name)), notes, name)

    def test_migrate_peers(self):
        """What this QEMU has not been built with is left out and named, and so is COLO; neither is ever faked."""
        found, notes = migrate.peers_here(["qemu-multifd-zstd", "qemu", "qemu-multifd-zlib-tls"],
                                          {"version": (7, 2, 22), "compressions": ["none", "zlib"]})
        self.assertEqual(found, ["qemu", "qemu-multifd-zlib-tls"])
        self.assertEqual(notes, ["QEMU, multifd, zstd left out: QEMU 7.2.22 was built without zstd",
                                 "QEMU's COLO is not measured: it is left to QEMU 11 and later, and this is 7.2.22"])
        self.assertIn("cannot drive", migrate.peers_here([], {"version": (11, 0, 0), "compressions": ["none"]})[1][0])
        self.assertEqual(set(migrate.peers("all")), set(migrate_report.NAMES) - {"understudy"})
        self.assertEqual(migrate.peers("none"), [])

    def test_takeover(self):
        kill = {"parts_ms": {part: 1.0 for part in takeover.PARTS}, "decision_to_running_ms": 4.0, "kill_to_running_ms": 250.0,
                "gap_ms": {"udp": 300.0, "tcp": 310.0}}
        document = result_of("takeover", takeover.describe, {"takeovers": [kill, {**kill, "kill_to_running_ms": 270.0}]},
                             kills=2, vmm="qemu", detect=250, seed=1)
        validate(document)
        one, = [one for one in document["histograms"] if one["name"] == "kill_to_running"]
        self.assertEqual((one["count"], one["p50"], one["max"]), (2, 250.0, 270.0))
        document["environment"]["accelerator"] = "tcg"
        self.assertIn("2 kills", takeover.table(document))

    def test_takeover_of_our_own_vmm(self):
        """The bare guest speaks no TCP: there is no figure of it."""
        kill = {"parts_ms": {part: 1.0 for part in takeover.PARTS}, "decision_to_running_ms": 4.0, "kill_to_running_ms": 250.0,
                "gap_ms": {"udp": 300.0}}
        document = result_of("takeover", takeover.describe, {"takeovers": [kill]}, kills=1, vmm="kvm", detect=250, seed=1)
        validate(document)
        self.assertFalse([one for one in document["figures"] if "tcp" in one["name"]])
        self.assertEqual(document["environment"]["accelerator"], "kvm")
        self.assertIn("our own VMM", takeover.table(document))


@need_program
class Lost(unittest.TestCase):
    def test_a_worker_that_dies(self):
        """Of several guests' workers one is killed: the others, who wait for it, are ended, and the failure is told."""
        process = subprocess.Popen([UNDERSTUDY, "bench", "replicate", "--size", "16M", "--vms", "3", "--rounds", "100", "--json"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children, deadline = [], time.monotonic() + 30
        while len(children) < 6 and time.monotonic() < deadline and process.poll() is None:
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                children = file.read().split()
        time.sleep(0.3)
        os.kill(int(children[3]), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (1, ""))
        self.assertRegex(err, "bench replicate: .*standby")
        self.assertFalse([pid for pid in children if os.path.exists(f"/proc/{pid}")])


@need_program
class Usage(unittest.TestCase):
    def test_nonsense(self):
        for argv, code in (
                (["compare"], 2), (["compare", "-", "-"], 2), (["report", "/nonexistent"], 1), (["scale", "--lanes", "0"], 2),
                (["scale", "--sizes", "1k"], 2), (["replicate", "--json", "/nonexistent/a"], 1), (["nothing"], 2),
                (["scale", "--html", "/nonexistent/a"], 2), (["environment", "now"], 2), (["takeover", "--kills", "0"], 2)):
            done = subprocess.run([UNDERSTUDY, "bench", *argv], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, code, (argv, done.stderr))
            self.assertTrue(done.stderr)

    def test_help(self):
        for word in "replicate", "scale", "protect", "migrate", "takeover", "compare", "report", "environment":
            self.assertIn(f"bench {word}", bench(word, "--help"))


if __name__ == "__main__":
    unittest.main()
