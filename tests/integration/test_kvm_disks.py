# SPDX-License-Identifier: Apache-2.0
"""Disks of our own VMM's guests: the guest itself remembers what must be in each block (bench/guests/disk.c)."""
import os
import re
import signal

from kvm import KvmPair
from test_disks import MIB, disks_of
from test_faults import PRIMARY
from test_migrate import migrate
from test_reprotect import Watch, check_runs
from understudy_test import check, wait_for

WORDS = "block=ram mem=256K rate=20 check=200 tick=100 disk=0xd0000000:5 disk_rate=200 disk_blocks=32"


class DiskPair(KvmPair):
    def __init__(self, run, words=WORDS, images=(8,), **options):
        super().__init__(run, words=words, images=images, **options)

    def passes(self, host):
        return len(re.findall(r"^disk pass \d+ ok \d+\r?\n", self.serial(host).text(), re.M))

    def wait_passes(self, host, count=2, seconds=90):
        """So many more times all blocks of the disk were read and found right. The first may have begun before."""
        serial, first = self.serial(host), self.passes(host)
        wait_for(f"{count} passes of the guest's disk on {host}", seconds,
                 lambda: serial.corrupt() or self.passes(host) >= first + count, self.story, every=0.1)
        check(not serial.corrupt(), f"the guest on {host}: {serial.corrupt()}", self.story)

    def same_images(self, index=0):
        with open(self.image("alpha", index), "rb") as one, open(self.image("beta", index), "rb") as other:
            return one.read() == other.read()


def take_over(pair):
    """The primary dies, and the guest finds its disk as it knows it."""
    stop_watching = pair.watch()
    pair.wait_epochs(5)
    pair.kill_primary()
    stop_watching()
    pair.check_taken_over(passes=1)
    pair.wait_passes("beta")


def test_takeover(run):
    """Two disks, the second read-only: the first is the guest's at the other host, to the byte."""
    pair = DiskPair(run, images=(8,), takeover="auto", interval="20ms")
    content = pair.path("content.img")
    with open(content, "wb") as file:
        file.write(os.urandom(MIB))
    pair.more = ("--disk", f"{content},ro,id=content", "--rng")
    pair.words = pair.words.replace("0xd0000000:5", "0xd0000400:7")
    pair.write_config()
    pair.up()
    status = disks_of(pair)
    check(status["count"] == 1 and status["bytes"] == 8 * MIB, f"{status}", pair.story)
    pair.wait_passes("alpha", 1)
    take_over(pair)
    status = disks_of(pair, "beta")
    return f"applied {status['applied_bytes'] / MIB:.1f} MiB"


def test_moved_and_back(run):
    """A planned move and the way home: at each place the guest finds its disk, and at home only what was written since
    is sent."""
    pair = DiskPair(run, reprotect="auto").up()
    pair.wait_passes("alpha", 1)
    stop_watching = pair.watch()
    summary = migrate(pair, "--max-downtime", "1000")
    stop_watching()
    check(summary["state"] == "moved", f"not moved: {summary}", pair.story)
    check_runs(pair, "beta", pair.acknowledged)
    pair.wait_protected("beta")
    status = disks_of(pair, "beta")
    check(status["known_bytes"] > 6 * MIB, f"the image that was left behind is not used: {status}", pair.story)
    watch = Watch(pair, "beta")
    pair.wait_passes("beta")
    os.truncate(pair.path("alpha.serial"), 0)
    run.us("switchback", pair.config("beta"), "--host", "beta", network=run.network("beta"), seconds=60)
    check_runs(pair, "alpha", watch.stop())
    pair.wait_passes("alpha")
    return f"down {summary['downtime_ms']:.1f} ms, {status['known_bytes'] / MIB:.1f} MiB known"


def test_engine_killed(run):
    """At whatever point: the guest's requests go on by themselves, and the next engine makes the disks the same."""
    pair = DiskPair(run, words=WORDS + " disk_writes=300", net_gate="none").start_guest()  # heard without an engine, too
    pair.standby()
    for point in "disk-change@20", f"capture-paused@{PRIMARY['capture-paused']}", "capture-copied@3":
        engine = pair.protect(protected=False, faults=[f"{point}=kill"])
        engine.wait(40)
        pair.wait_passes("alpha")
    pair.protect()
    wait_for("the guest has written all", 60, lambda: said(pair, "alpha")["writes"] + said(pair, "alpha")["zeroes"] >=
             300 or pair.serial("alpha").corrupt(), pair.story)
    check_same(pair)
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta", seconds=60)
    pair.check_taken_over(passes=1)
    pair.wait_passes("beta")


def said(pair, host):
    """What the guest says of its disk: {"requests": 5, "writes": 3, ...}."""
    lines = re.findall(r"^disk (requests .*?)\r?\n", pair.serial(host).text(), re.M)
    words = lines[-1].split() if lines else []
    return {"writes": 0, "zeroes": 0, **{key: int(value) for key, value in zip(words[::2], words[1::2])}}


def check_same(pair):
    """While the guest writes nothing more."""
    pair.wait_epochs(3)
    wait_for("nothing waits in the journal", 20, lambda: not disks_of(pair, "beta")["journal_bytes"], pair.story)
    check(pair.same_images(), "the disks differ", pair.story)


def test_engine_stands_still(run):
    """An engine that is stopped keeps the guest's writes waiting for some seconds; then they go on without it, and it
    copies the disk again when it is let run."""
    pair = DiskPair(run, detect="30s", net_gate="none").up()
    pair.wait_epochs(3)
    engine = pair.engines["alpha"]
    engine.signal(signal.SIGSTOP)
    try:
        wait_for("the VMM gives the engine up", 40,
                 lambda: "not told any more" in open(pair.log("alpha-vmm")).read(), pair.story, every=0.2)
        pair.wait_passes("alpha")
    finally:
        engine.signal(signal.SIGCONT)
    wait_for("the loss is told", 20, lambda: (pair.status("alpha") or {}).get("disks", {}).get("lost"), pair.story)
    pair.wait_protected()
    pair.wait_epochs(3)
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta", seconds=60)
    pair.check_taken_over(passes=1)
    pair.wait_passes("beta")


def test_standby_full(run):
    """The standby's image cannot grow: refused, with the reason; the guest is not harmed, and protected when there is
    room."""
    pair = DiskPair(run, words=WORDS.replace("disk_blocks=32", "disk_blocks=512 disk_writes=600"), journal="8MiB",
                    standby_loss="continue", images=(4,))
    small = pair.path("small")
    os.mkdir(small)
    run.command("mount", "-t", "tmpfs", "-o", "size=1m", "understudy-test", small)
    try:
        image = os.path.join(small, "disk.img")
        with open(image, "wb") as file:
            file.truncate(4 * MIB)
        os.remove(pair.image("beta"))
        os.symlink(image, pair.image("beta"))
        pair.start_guest()
        pair.standby()
        pair.protect(protected=False)
        wait_for("the standby says why", 60,
                 lambda: "No space left on device" in open(pair.log("beta-standby")).read(), pair.story, every=0.2)
        pair.wait_ticks("alpha", 2)
        run.command("mount", "-o", "remount,size=16m", small)
        pair.wait_protected()
        wait_for("the guest has written all", 60, lambda: said(pair, "alpha")["reads"] >= 512 or
                 pair.serial("alpha").corrupt(), pair.story)
        check_same(pair)
    finally:
        run.command("umount", "-l", small)


def test_disks_that_differ(run):
    """A standby with another disk is refused by name; an image that is in use is not opened twice."""
    pair = DiskPair(run, images=(8,)).start_guest(ticks=1)
    argv = [word.strip("'") for word in pair.vmm_command("alpha", understudy=False)]
    argv[argv.index("--control") + 1] = pair.path("other.vmm")
    _, err, _ = run.command(*argv, expect=1)
    check("is locked: another VMM has it" in err, f"the image was opened twice: {err}")
    os.truncate(pair.image("beta"), 4 * MIB)
    pair.standby()
    pair.protect(protected=False)
    wait_for("the refusal", 20, lambda: f"disk disk0 {4 * MIB}" in pair.story(), pair.story)
    pair.wait_ticks("alpha", 1)
