# SPDX-License-Identifier: Apache-2.0
"""The guest's disks: the standby's are, to the byte, those of its checkpoint."""
import json
import os
import signal
import time

from qmp import Qmp
from services import Disk
from understudy_test import check, wait_for

QUIET = "us.mem=4M us.rate=200 us.check=2000"
MIB = 1 << 20


def writing(run, *disks, load=QUIET, **keys):
    """A guest whose fio writes and verifies its last disk."""
    bus = disks[-1].bus
    device = "/dev/sda" if bus == "virtio-scsi" else "/dev/vd" + "abc"[sum(d.bus == "virtio-blk" for d in disks) - 1]
    return run.pair(machine="q35", memory=256, load=f"{load} us.fiodev={device} us.fiosize=2M", services="fio",
                    disks=disks, **keys)


def passes(pair, host="alpha"):
    return pair.serial(host).text().count("fio: pass")


def wait_fio(pair, host="alpha", count=1, seconds=40):
    """fio reads back what it wrote, and never sees an error of the disk."""
    first, serial = passes(pair, host), pair.serial(host)
    wait_for(f"{count} more passes of fio on {host}", seconds,
             lambda: serial.corrupt() or passes(pair, host) >= first + count, pair.story)
    check(not serial.corrupt(), f"on {host}: {serial.corrupt()}", pair.story)


def disks_of(pair, host="alpha"):
    return pair.status(host)["disks"]


def check_same_images(run, pair, seconds=20):
    """The guest's disks on either side, while nobody in the guest writes."""
    with pair.shell() as shell:
        shell("killall -STOP fio; sync", expect=None)
        pair.wait_epochs(2)
        wait_for("nothing waits in the journal", seconds, lambda: not disks_of(pair, "beta")["journal_bytes"],
                 pair.story)
        for index, disk in enumerate(pair.devices.disks):
            out, _, code = run.command("qemu-img", "compare", "-U", "-f", disk.format, "-F", disk.format,
                                       pair.devices.disk_path("alpha", index), pair.devices.disk_path("beta", index),
                                       expect=(0, 1))
            check(code == 0, f"disk {index}: {out}", pair.story)
        shell("killall -CONT fio", expect=None)
    pair.wait_epochs(2)  # the standby's guest, too, has a fio that was told to go on


def take_over(run, pair):
    """The primary dies; what fio wrote there it verifies at the standby."""
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta", seconds=60)
    pair.check_taken_over()
    wait_fio(pair, "beta", 2, seconds=60)


def oracle(run, *disks):
    """At a checkpoint taken while fio writes, the standby's images are what the primary's were at its pause."""
    n = run.random.randint(20, 60)
    pair = writing(run, *disks, detect="20s")
    pair.start_guest()
    pair.standby()
    if len(disks) > 1:
        with pair.shell() as shell:
            shell("while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=4 seek=$((RANDOM % 60)) oflag=direct "
                  "conv=notrunc; dd if=/dev/zero of=/dev/vda bs=4k count=3 seek=$((RANDOM % 4000)) oflag=direct "
                  "conv=notrunc; done </dev/null >/dev/null 2>&1 &")
    engine = pair.protect(protected=False, faults=[f"capture-copied@{n}=stop", f"ack-received@{n}=kill"])
    wait_for(f"capture {n}", 60, lambda: engine.stopped() or not engine.running(), pair.story, every=0.005)
    check(engine.running(), "the engine ended before its stop", pair.story)
    copies = []
    for index in range(len(disks)):
        copies.append(pair.path(f"oracle{index}.img"))
        run.command("cp", "--sparse=always", pair.devices.disk_path("alpha", index), copies[index])
    os.kill(engine.pid, signal.SIGCONT)
    engine.popen.wait(20)
    pair.qemu.kill()
    wait_for("nothing waits in the journal", 20,
             lambda: pair.status("beta")["committed_epoch"] and not pair.status("beta")["disks"]["journal_bytes"],
             pair.story)
    for index, disk in enumerate(disks):
        out, _, code = run.command("qemu-img", "compare", "-U", "-f", disk.format, "-F", disk.format, copies[index],
                                   pair.devices.disk_path("beta", index), expect=(0, 1))
        check(code == 0, f"disk {index}, capture {n}: {out}", pair.story)
    return f"capture {n}, {pair.status('beta')['disks']['applied_bytes'] >> 20} MiB applied"


def test_oracle(run):
    return oracle(run, Disk(mib=16))


def test_oracle_two_disks(run):
    """Of two disks and two formats, both written at the time."""
    return oracle(run, Disk(mib=16), Disk(mib=16, format="qcow2", bus="virtio-scsi"))


def test_kill_under_fio(run):
    """The primary is killed while fio writes; fio goes on at the standby and verifies what it wrote before."""
    pair = writing(run, Disk(mib=16), takeover="auto").up()
    wait_for("a pass of fio", 40, lambda: "fio: pass 1 ok" in pair.serial("alpha").text(), pair.story)
    pair.wait_epochs(run.random.randint(5, 30))
    pair.kill_primary()
    pair.check_taken_over()
    serial = pair.serial("beta")
    wait_for("passes of fio on beta", 60, lambda: serial.corrupt() or serial.text().count("fio: pass") >= 2, pair.story)
    check(not serial.corrupt(), f"on beta: {serial.corrupt()}", pair.story)


def test_unprivileged_qemu(run):
    """A QEMU without rights and in a sandbox has its disks mirrored like any other."""
    pair = writing(run, Disk(mib=16), unprivileged=True).up()
    wait_fio(pair)
    take_over(run, pair)


def test_mirror_ends(run):
    """Somebody ends our mirror while fio writes, or completes it: the guest sees nothing, the disk is copied anew.

    Not by force: QEMU 7.2 does not outlive that with writes under way (vmm/qemu/mirror.c)."""
    pair = writing(run, Disk(mib=16), second_monitor=True).up()
    wait_fio(pair)
    with Qmp(pair.path("alpha.qmp2")) as qmp:
        for lost, command in enumerate(("block-job-cancel", "block-job-complete", "block-job-cancel"), 1):
            before = disks_of(pair)
            check(before["lost"] == lost - 1, f"{before}", pair.story)
            qmp(command, device="understudy-mirror-0")
            wait_for("the loss is told", 10, lambda: disks_of(pair)["lost"] == lost, pair.story)
            wait_for("the disk is copied anew", 30, lambda: not disks_of(pair)["behind"] and
                     disks_of(pair)["copied_bytes"] >= before["copied_bytes"] + 16 * MIB, pair.story)
            pair.wait_protected()
            pair.wait_epochs(3)
    wait_fio(pair)
    check_same_images(run, pair)
    take_over(run, pair)


def test_export_ends(run):
    """QEMU's NBD server, through which we read the disk, is taken away: fio goes on, and nothing is committed before
    we have it again."""
    pair = writing(run, Disk(mib=16), second_monitor=True).up()
    with Qmp(pair.path("alpha.qmp2")) as qmp:
        qmp("nbd-server-stop")
        qmp("nbd-server-start", addr={"type": "unix", "data": {"path": pair.path("other.nbd")}})
        qmp("block-job-cancel", device="understudy-mirror-0")
        wait_for("it is tried again", 20, lambda: "it is tried again" in open(pair.log("alpha-protect")).read(),
                 pair.story)
        wait_fio(pair)
        count = pair.status("alpha")["checkpoints"]
        check(disks_of(pair)["behind"], "the disk was read, by whatever means", pair.story)
        pair.wait_ticks("alpha", 2)
        check(pair.status("alpha")["checkpoints"] == count, "a checkpoint without the disk", pair.story)
        check(os.path.exists(pair.path("other.nbd")), "somebody else's NBD server was stopped", pair.story)
        qmp("nbd-server-stop")
    wait_for("the disk is copied", 40, lambda: not disks_of(pair)["behind"], pair.story)
    pair.wait_protected()
    pair.wait_epochs(3)
    text = open(pair.log("alpha-protect")).read()
    check(text.count("it is tried again") < 60, "it was tried again and again", pair.story)
    check_same_images(run, pair)
    take_over(run, pair)


def block_nodes(qmp):
    return {node["node-name"] for node in qmp("query-named-block-nodes", flat=True)}


def test_engine_killed_and_stopped(run):
    """Whatever an engine leaves behind when it is killed is in nobody's way; one that ends in order leaves nothing."""
    pair = writing(run, Disk(mib=16)).start_guest()
    with Qmp(pair.path("alpha.qmp")) as qmp:
        nodes = block_nodes(qmp)
    pair.standby()
    for point in f"disk-change@{run.random.randint(1, 400)}", "capture-copied@3", "copy-round@1":
        engine = pair.protect(protected=False, faults=[f"{point}=kill"])
        code = engine.wait(40)
        check(code == -signal.SIGKILL, f"at {point} the engine ended with {code}", pair.story)
        pair.wait_ticks("alpha", 1)
    wait_fio(pair)
    engine = pair.protect()
    check_same_images(run, pair)
    run.us("stop", pair.config("alpha"), "--host", "alpha")
    check(engine.wait(15) == 0, "the engine did not end in order", pair.story)
    with Qmp(pair.path("alpha.qmp")) as qmp:
        check(qmp("query-block-jobs") == [], "a job is left", pair.story)
        check(qmp("query-block-exports") == [], "an export is left", pair.story)
        left = block_nodes(qmp) - nodes
        check(not left, f"left: {left}", pair.story)
    pair.protect()
    take_over(run, pair)


def test_detached_under_load(run):
    """Engines come and go while writes are under way, and QEMU outlives them. Its mirror must end while the guest
    stands still: one that is cancelled under load spoils QEMU's memory (vmm/qemu/mirror.c)."""
    pair = writing(run, Disk(mib=16)).start_guest()
    pair.standby()
    with pair.shell() as shell:
        shell("for part in 0 1 2 3; do while :; do dd if=/dev/zero of=/dev/vda bs=64k count=50 seek=$((40 + part * 50)) "
              "oflag=direct conv=notrunc; done </dev/null >/dev/null 2>&1 & done")
    for _ in range(8):
        engine = pair.protect(protected=False)
        wait_for("the disk is mirrored", 30, lambda: (pair.status("alpha") or {}).get("checkpoints"), pair.story)
        run.us("stop", pair.config("alpha"), "--host", "alpha")
        check(engine.wait(15) == 0, "the engine did not end in order", pair.story)
        pair.wait_ticks("alpha", 1)
    with Qmp(pair.path("alpha.qmp")) as qmp:
        check(qmp("query-block-jobs") == [], "a job is left", pair.story)


def test_link_cut(run):
    """Behind a link that was cut, only what changed is copied; fio was never kept waiting for it."""
    pair = writing(run, Disk(mib=64), proxy=True, standby_loss="continue").up()
    wait_fio(pair)
    pair.wait_epochs(3)
    before = disks_of(pair)["copied_bytes"]
    check(before >= 64 * MIB, f"{disks_of(pair)}", pair.story)
    with pair.shell() as shell:
        pair.proxy.cut()
        began = time.monotonic()
        shell("dd if=/dev/urandom of=/dev/vda bs=4k seek=8192 count=200 oflag=direct conv=notrunc")
        took = time.monotonic() - began
        wait_for("the loss is noticed", 10, lambda: not pair.status("alpha")["protected"], pair.story)
        wait_fio(pair)
        pair.proxy.mend()
        pair.wait_protected()
    pair.wait_epochs(3)
    again = disks_of(pair)["copied_bytes"] - before
    check(took < 30, f"200 writes took {took:.1f} s", pair.story)
    check(again < 16 * MIB, f"{again >> 20} MiB were copied again", pair.story)
    check_same_images(run, pair)
    take_over(run, pair)
    return f"{again / MIB:.1f} MiB copied again, 200 writes of 4 KiB took {took:.2f} s"


def test_link_unplugged(run):
    """No word from the standby any more, with the log bounded to what fio fills in a moment: no write waits long."""
    pair = writing(run, Disk(mib=32), standby_loss="continue", disk_log="4MiB").up()
    wait_fio(pair)
    before = disks_of(pair)["copied_bytes"]
    longest = 0
    with pair.shell() as shell:
        run.link(False)
        for place in range(6):
            began = time.monotonic()
            shell(f"dd if=/dev/urandom of=/dev/vda bs=1M seek={10 + place} count=2 oflag=direct conv=notrunc")
            longest = max(longest, time.monotonic() - began)
        wait_fio(pair)
        run.link(True)
        pair.wait_protected()
    pair.wait_epochs(3)
    again = disks_of(pair)["copied_bytes"] - before
    check(longest < 4, f"2 MiB took {longest:.1f} s", pair.story)
    check(again < 32 * MIB, f"{again >> 20} MiB were copied again", pair.story)
    check_same_images(run, pair)
    take_over(run, pair)
    return f"{again / MIB:.1f} MiB copied again, 2 MiB took {longest:.2f} s at most"


def test_standby_restarted(run):
    """A standby that was killed has nothing: it gets all of the disk, and the guest has not noticed."""
    pair = writing(run, Disk(mib=32), standby_loss="continue").up()
    wait_fio(pair)
    before = disks_of(pair)["copied_bytes"]
    pair.engines["beta"].kill()
    wait_for("the loss is noticed", 10, lambda: not pair.status("alpha")["protected"], pair.story)
    wait_fio(pair)
    pair.standby()
    pair.wait_protected()
    pair.wait_epochs(3)
    again = disks_of(pair)["copied_bytes"] - before
    check(again >= 32 * MIB, f"only {again >> 20} MiB were copied again", pair.story)
    check_same_images(run, pair)
    take_over(run, pair)


def sums(pair, host="alpha"):
    with pair.shell(host) as shell:
        return shell("md5sum </dev/vda").split()[0]


def refused_when_full(run, pair, what):
    """More is written in an epoch than the journal takes: refused by name, the last commit stays, and is right."""
    with pair.shell() as shell:  # in the guest's memory, so that it is written to the disk well within an epoch
        shell("dd if=/dev/urandom of=/tmp/noise bs=1M count=12")
    pair.wait_epochs(2)
    wait_for("nothing waits in the journal", 20, lambda: not disks_of(pair, "beta")["journal_bytes"], pair.story)
    kept = pair.path("kept.img")
    run.command("cp", "--sparse=always", pair.devices.disk_path("beta", 0), kept)
    before = sums(pair)
    with pair.shell() as shell:
        pair.wait_epochs(1)
        committed = pair.status("alpha")["committed_epoch"]
        shell("dd if=/tmp/noise of=/dev/vda bs=1M oflag=direct conv=notrunc")
    wait_for(f"refused: {what}", 30,
             lambda: what in open(pair.log("beta-standby")).read() and not pair.status("alpha")["protected"],
             pair.story)
    # Perhaps not the first time: the lane that is closed may be seen before the reason on the other is read.
    wait_for("the primary knows why", 40, lambda: "staging" in open(pair.log("alpha-protect")).read(), pair.story)
    pair.wait_ticks("alpha", 2)
    wait_for("the standby is itself again", 20, lambda: pair.status("beta"), pair.story)
    check(pair.status("beta")["committed_epoch"] == committed, f"not the commit {committed} that was kept", pair.story)
    out, _, code = run.command("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", kept,
                               pair.devices.disk_path("beta", 0), expect=(0, 1))
    check(code == 0, f"the last commit's disk was touched: {out}", pair.story)
    return before


def full(run, journal="1GiB"):
    """A guest that writes its disk only when it is told to; epochs last long."""
    pair = run.pair(memory=256, load=QUIET, services="idle", disks=[Disk(mib=32)], interval="4s", journal=journal,
                    standby_loss="continue")
    return pair.start_guest()


def test_journal_full(run):
    pair = full(run, "4MiB")
    pair.standby()
    pair.protect()
    refused_when_full(run, pair, "journal full")
    pair.engines["beta"].kill()
    pair.write_config(journal="64MiB")
    pair.standby()
    pair.wait_protected()
    pair.wait_epochs(1)
    check_same_images(run, pair)


def test_journal_full_file_system(run):
    """And the last commit can be taken over, though the place of the generation is that of the journal."""
    pair = full(run)
    small = pair.path("small")
    os.mkdir(small)
    run.command("mount", "-t", "tmpfs", "-o", "size=6m", "understudy-test", small)
    try:
        pair.write_config(host_keys={"beta": {"state-dir": small}})
        pair.standby()
        pair.protect()
        before = refused_when_full(run, pair, "journal full")
        pair.kill_primary()
        run.us("takeover", pair.config("beta"), "--host", "beta", seconds=60)
        pair.check_taken_over()
        check(sums(pair, "beta") == before, "another disk than that of the last commit was taken over", pair.story)
    finally:
        run.command("umount", "-l", small)


def standby_killed(run, *points):
    """The standby dies at each point while it has changes of disks in hand; then it is filled, and is right."""
    pair = writing(run, Disk(mib=16), standby_loss="continue").start_guest()
    engine = pair.standby()
    pair.protect()
    for point in points:
        engine.kill()
        engine = pair.standby(faults=[f"{point}@{run.random.randint(2, 20)}=kill"])
        code = engine.wait(40)
        check(code == -signal.SIGKILL, f"at {point} the standby ended with {code}", pair.story)
        engine = pair.standby()
        pair.wait_protected()
        pair.wait_epochs(2)
        check_same_images(run, pair)
    wait_fio(pair)
    take_over(run, pair)


def test_standby_killed_while_journaling(run):
    standby_killed(run, "journal-write", "journal-commit")


def test_standby_killed_behind_a_commit(run):
    standby_killed(run, "journal-committed", "journal-apply")


def test_disks_that_are_not_ours(run):
    """A disk that is read-only is passed by; one that others may write to is refused, unless it is declared."""
    content = os.path.join(run.directory, "content.img")
    with open(content, "wb") as file:
        file.write(os.urandom(MIB))
    pair = run.pair(memory=256, load=QUIET, services="idle",
                    disks=[Disk(mib=8), Disk(content, read_only=True), Disk(mib=8, share_rw=True)]).start_guest()

    def findings(expect, *where):
        report = json.loads(run.us("check", *where, "--json", expect=expect)[0])
        found = {}
        for entry in report["findings"]:
            for index in range(3):
                if f"disk{index}" in entry["subject"]:
                    found[index] = (entry["verdict"], entry["text"])
        check(len(found) == 3, f"{report}", pair.story)
        return found
    found = findings(4, pair.config("alpha"), "--host", "alpha")
    check("copied to the standby" in found[0][1] and "read-only" in found[1][1], f"{found}", pair.story)
    check(found[2][0] == "refused" and "share-rw" in found[2][1], f"{found}", pair.story)
    engine = pair.protect(protected=False)
    check(engine.wait(20) != 0 and "share-rw" in open(pair.log("alpha-protect")).read(), "not refused", pair.story)
    pair.write_config(shared_disks="disk2")
    found = findings(0, pair.config("alpha"), "--host", "alpha")
    check("shared" in found[2][1] and found[2][0] != "refused", f"{found}", pair.story)
    pair.standby()
    pair.protect()
    status = disks_of(pair)
    check(status["count"] == 1 and status["bytes"] == 8 * MIB, f"{status}", pair.story)
    pair.wait_epochs(3)
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()
    with pair.shell("beta") as shell:
        shell("cmp /dev/vdb /dev/vdb && dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct conv=notrunc")
