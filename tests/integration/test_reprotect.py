# SPDX-License-Identifier: Apache-2.0
"""Re-protection: the guest has changed hosts, and is protected in the other direction; it moves back home."""
import json
import os
import signal
import threading
import time

from services import Disk
from test_disks import MIB, QUIET, sums, wait_fio, writing
from test_events import wait_events
from test_output import counting, observe, seen
from test_verify import ram_mapping
from understudy_test import PAGES, check, wait_for

OTHER = {"alpha": "beta", "beta": "alpha"}


class Watch:
    """How far the guest was at the last checkpoint whose acknowledgement this host's engine saw."""

    def __init__(self, pair, host):
        self.pair, self.host, self.acknowledged, self.end = pair, host, 0, threading.Event()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        while not self.end.is_set():
            status = self.pair.ask(self.host, seconds=1) or {}
            self.acknowledged = max(self.acknowledged, (status.get("probe") or {}).get("acknowledged") or 0)
            self.end.wait(0.01)

    def stop(self):
        self.end.set()
        self.thread.join(5)
        check(self.acknowledged, "no checkpoint was acknowledged while it was watched", self.pair.story)
        return self.acknowledged


def kill_host(pair, host):
    """Engine and QEMU of a host, at once."""
    pid = pair.status(host)["guest"]["pid"]
    pair.run.log(f"killing {host}: QEMU {pid} and engine {pair.engines[host].pid}")
    os.kill(pid, signal.SIGKILL)
    pair.engines[host].kill()


def check_runs(pair, host, acknowledged, seconds=60):
    """The guest runs here, lost nothing that was acknowledged, and has checked all its memory since."""
    def here():
        status = pair.status(host) or {}
        return status.get("role") == "primary" and status.get("guest_here") and status["guest"]["running"]
    wait_for(f"the guest runs on {host}", seconds, here, pair.story)
    serial = pair.serial(host)
    wait_for(f"two passes of the guest's own check on {host}", 60,
             lambda: serial.corrupt() or (serial.passes() >= 2 and serial.ticks()), pair.story, every=0.1)
    check(not serial.corrupt(), f"the guest on {host} found its memory wrong: {serial.corrupt()}", pair.story)
    first = serial.ticks()[0][0]
    check(first >= acknowledged, f"{host} went on at {first}, behind the acknowledged {acknowledged}", pair.story)


def wait_reprotected(pair, host, seconds=60):
    """`host` protects the guest, by itself, and the other one says so too."""
    wait_for(f"{host} protects the guest", seconds,
             lambda: (lambda s: s.get("role") == "primary" and s.get("protected"))(pair.status(host) or {}), pair.story)
    wait_for(f"{OTHER[host]} stands by", 20,
             lambda: (lambda s: s.get("role") == "standby" and s.get("protected"))(pair.status(OTHER[host]) or {}),
             pair.story)
    check(pair.ticking(2) == [host], f"it runs elsewhere than on {host} alone", pair.story)


def command(pair, name, host, *options, expect=0):
    out, err, _ = pair.run.us(name, pair.config(host), "--host", host, *options, expect=expect, seconds=60,
                              network=pair.run.network(host))
    return json.loads(out) if "--json" in options and out.strip().startswith("{") else out + err


def move(pair, name, host, *options):
    watch = Watch(pair, host)
    summary = command(pair, name, host, "--max-downtime", "500", "--json", *options)
    acknowledged = watch.stop()
    check(summary["state"] == "moved" and summary["to"] == OTHER[host], f"not moved: {summary}", pair.story)
    check_runs(pair, OTHER[host], acknowledged)
    return summary


def fail_over(pair, host):
    """`host` dies and its guest goes on elsewhere, by itself."""
    watch = Watch(pair, host)
    wait_for("a checkpoint to be seen", 20, lambda: watch.acknowledged, pair.story)
    kill_host(pair, host)
    check_runs(pair, OTHER[host], watch.stop())


def test_rounds(run):
    """Killed, taken over, the old host back, protected by itself, moved home, killed again ... without a restart of
    the guest; its memory and its disks are checked each time."""
    pair = writing(run, Disk(mib=8), Disk(mib=8, format="qcow2"), takeover="auto", reprotect="auto").up()
    wait_fio(pair)
    begun, generation = pair.status("alpha")["generation"], []
    for number in range(2):
        fail_over(pair, "alpha")
        pair.start("run", "alpha")
        wait_reprotected(pair, "beta")
        wait_fio(pair, "beta")
        engines = {host: engine.pid for host, engine in pair.engines.items()}
        move(pair, "switchback", "beta")
        wait_reprotected(pair, "alpha")
        wait_fio(pair, "alpha")
        check(all(engine.running() and engine.pid == engines[host] for host, engine in pair.engines.items()),
              "an engine ended instead of changing its role", pair.story)
        generation.append(pair.status("alpha")["generation"])
    check(generation == [begun + 2, begun + 4], f"generations {generation} after {begun}", pair.story)
    check(not pair.verify()["differing"], "memory differs", pair.story)
    wait_events(pair, "beta", "takeover-done", "reprotecting", "started", "copying", "protected", "switching", "moved",
                "reprotecting", "started", "protected")


def test_moved_and_swapped(run):
    """A planned move swaps the roles; the home host is said; switchback is refused where it makes no sense."""
    pair = run.pair(load=PAGES, reprotect="auto").up()
    err = command(pair, "switchback", "alpha", expect=4)
    check("at home" in err, f"switchback at home says {err}", pair.story)
    move(pair, "migrate", "alpha")
    wait_reprotected(pair, "beta")
    status = pair.status("beta")
    check(status["home"] == "alpha" and status["reprotect"] == "auto" and status["guest_here"], f"{status}", pair.story)
    check(pair.status("alpha")["migration"]["state"] == "moved", "the new standby forgot the move", pair.story)
    err = command(pair, "switchback", "alpha", expect=4)
    check("beta" in err, f"switchback at the wrong host says {err}", pair.story)
    pair.engines["alpha"].kill()
    wait_for("beta notices", 20, lambda: not pair.status("beta")["protected"], pair.story)
    err = command(pair, "switchback", "beta", expect=4)
    check("does not protect" in err, f"switchback without protection says {err}", pair.story)
    pair.standby("alpha")
    wait_reprotected(pair, "beta")
    move(pair, "switchback", "beta")
    wait_reprotected(pair, "alpha")


def test_cold_and_manual(run):
    """Left cold, or by policy, the source keeps its stopped guest until an operator says otherwise."""
    pair = run.pair(load=PAGES, reprotect="auto").up()
    move(pair, "migrate", "alpha", "--cold")
    wait_for("beta is turned away", 30, lambda: "is kept" in (pair.status("beta") or {}).get("reason", ""), pair.story)
    check(pair.status("alpha")["state"] == "moved" and pair.qemu.running(), "the source is not cold", pair.story)
    command(pair, "reprotect", "alpha")
    wait_reprotected(pair, "beta")
    check(pair.qemu.wait(20) == 0, "the guest left behind was killed, not ended", pair.story)
    err = command(pair, "reprotect", "beta", expect=4)
    check("protected" in err, f"reprotect of a protected guest says {err}", pair.story)


def test_manual(run):
    """reprotect = manual: nobody changes roles unless told to."""
    pair = run.pair(load=PAGES, takeover="auto").up()
    pair.wait_epochs(5)
    pair.kill_primary()
    pair.check_taken_over()
    pair.standby("alpha")
    check(pair.status("beta")["state"] == "active", "beta changed its role", pair.story)
    command(pair, "reprotect", "beta")
    wait_reprotected(pair, "beta")


def test_old_primary_lives(run):
    """The link was cut and the guest taken over while the old host lived: with the link back the old primary hears of it
    at its door or its peer's, stops its guest, and becomes the standby."""
    pair = run.pair(load=PAGES, takeover="auto", reprotect="auto").up()
    pair.wait_epochs(10)
    for process in pair.qemu, pair.engines["alpha"]:
        process.signal(signal.SIGSTOP)
    check_runs(pair, "beta", 0)
    for process in pair.engines["alpha"], pair.qemu:
        process.signal(signal.SIGCONT)
    wait_reprotected(pair, "beta")
    check(pair.qemu.wait(20) == 0, "the old guest is still there", pair.story)
    copy = pair.status("beta")["initial_copy"]
    check(copy["known_bytes"] >= 8 * MIB, f"its memory was of no use: {copy}", pair.story)
    wait_events(pair, "alpha", "yielded", "reprotecting", "started", "protected")
    fail_over(pair, "beta")


def test_guest_of_somebody_else_is_not_ended(run):
    """What runs, or was stopped by others, is not ended to make room for a standby."""
    pair = run.pair(load=PAGES, takeover="auto", reprotect="auto").up()
    pair.wait_epochs(5)
    pair.engines["alpha"].signal(signal.SIGKILL)
    pair.qemu.signal(signal.SIGSTOP)
    check_runs(pair, "beta", 0)
    pair.qemu.signal(signal.SIGCONT)
    pair.standby("alpha")  # a mistake: its old guest runs still
    wait_for("the standby refuses", 30, lambda: "already" in (pair.status("beta") or {}).get("reason", ""), pair.story)
    check(pair.qemu.running(), "a running guest was ended", pair.story)


def test_disks_are_compared(run):
    """The old host's image has nearly all of it: only what differs is sent, and the disk is right to the byte."""
    pair = run.pair(memory=256, load=QUIET, services="idle", disks=[Disk(mib=32)], takeover="auto", reprotect="auto",
                    detect="2s").start_guest()
    with pair.shell() as shell:
        shell("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct conv=notrunc", seconds=60)
    pair.standby()
    pair.protect()
    first = pair.status("alpha")["disks"]
    before = sums(pair)
    fail_over(pair, "alpha")
    with pair.shell("beta") as shell:  # what differs: 1 MiB of it
        shell("dd if=/dev/urandom of=/dev/vda bs=64k count=16 seek=100 oflag=direct conv=notrunc")
    written = sums(pair, "beta")
    check(written != before, "nothing was written", pair.story)
    pair.start("run", "alpha")
    wait_reprotected(pair, "beta")
    again = pair.status("beta")["disks"]
    check(again["copied_bytes"] >= 32 * MIB and again["known_bytes"] >= 30 * MIB, f"sent, though known: {again}",
          pair.story)
    check(again["payload_bytes"] < first["payload_bytes"] / 10, f"{again} after {first}", pair.story)
    fail_over(pair, "beta")
    check(sums(pair) == written, "the disk is not what it was", pair.story)
    return (f"payload of the disk {first['payload_bytes'] / MIB:.1f} MiB at first, "
            f"{again['payload_bytes'] / MIB:.1f} MiB when re-protected")


NOISE = "us.mem=64M us.mode=random us.hot=64 us.rate=100 us.check=8000"


def verify(pair, host):
    return json.loads(pair.run.us("verify", pair.config(host), "--host", host, "--json", seconds=90)[0])


def sent(pair, host):
    return pair.status(host)["bytes"]["payload"]


def compared(run, **keys):
    """A move that swaps, and one back; what the copies in between sent."""
    pair = run.pair(memory=192, load=NOISE, reprotect="auto", **keys).up()
    first, first_copy = sent(pair, "alpha"), pair.status("alpha")["initial_copy"]
    move(pair, "migrate", "alpha")
    wait_reprotected(pair, "beta")
    again, copy = sent(pair, "beta"), pair.status("beta")["initial_copy"]
    check(copy["known_bytes"] >= 64 * MIB and again < first / 4, f"{copy}, {again} bytes sent after {first}", pair.story)
    check(not verify(pair, "beta")["differing"], "memory differs", pair.story)
    move(pair, "switchback", "beta")
    wait_reprotected(pair, "alpha")
    check(not pair.verify()["differing"], "memory differs", pair.story)
    return (f"{first / MIB:.1f} MiB sent in {first_copy['seconds']:.2f} s at first, {again / MIB:.1f} MiB in "
            f"{copy['seconds']:.2f} s when re-protected")


def test_memory_is_compared(run):
    """The old host's memory goes along into its new QEMU: only what differs is sent."""
    return compared(run)


def test_memory_is_compared_on_a_slow_link(run):
    return compared(run, bandwidth="20M")


def test_wrong_memory_is_healed(run):
    """What is left behind may be anything: somebody wrote into it, and what he wrote is not the guest's."""
    pair = run.pair(memory=192, load=NOISE, reprotect="auto", shared=True).up()
    move(pair, "migrate", "alpha", "--cold")
    wait_for("beta is turned away", 30, lambda: "is kept" in (pair.status("beta") or {}).get("reason", ""), pair.story)
    planted = 0
    with open(f"/proc/{pair.qemu.pid}/mem", "r+b", buffering=0) as memory:
        start = ram_mapping(pair.qemu.pid, pair.memory << 20)
        for offset in range(8 << 20, pair.memory << 20, 1 << 20):
            memory.seek(start + offset + 100)
            byte = memory.read(1)
            memory.seek(start + offset + 100)
            planted += memory.write(bytes([byte[0] ^ 1]))
    command(pair, "reprotect", "alpha")
    wait_reprotected(pair, "beta")
    copy = pair.status("beta")["initial_copy"]
    check(copy["known_bytes"] >= 64 * MIB, f"{copy}", pair.story)
    check(not verify(pair, "beta")["differing"], f"not all of {planted} wrong bytes were made good", pair.story)
    move(pair, "switchback", "beta")


def test_memory_cannot_be_kept(run):
    """The old memory is a help, no need: engines killed on its way, and errors there, cost a whole copy."""
    def protects(host):
        wait_reprotected(pair, host)
        copy = pair.status(host)["initial_copy"]
        check(not copy.get("known_bytes"), f"something was known: {copy}", pair.story)
        check(not verify(pair, host)["differing"], "memory differs", pair.story)

    def killed(host):
        check(pair.engines[host].wait(60) == -signal.SIGKILL, f"{host}'s engine was not killed", pair.story)

    pair = run.pair(memory=192, load=NOISE, reprotect="auto").start_guest()
    pair.standby(faults=["keep-fill=kill"])
    pair.protect(faults=["keep-memory=kill"])
    move(pair, "migrate", "alpha", "--cold")
    command(pair, "reprotect", "alpha", expect=None)
    killed("alpha")
    pair.start("run", "alpha", faults=["keep-memory=error", "keep-fill=error"])
    protects("beta")
    move(pair, "switchback", "beta")
    killed("beta")
    pair.start("run", "beta")
    protects("alpha")
    move(pair, "migrate", "alpha")
    protects("beta")


def test_output_is_held_in_both_directions(run):
    """The guest's word to clients on one open connection holds through takeover, re-protection, takeover back."""
    pair = counting(run, reprotect="auto").up()
    observer = observe(run, pair)
    for host in "alpha", "beta":
        output = pair.status(host)["output"]
        check(output["holding"] and output["gate"] != "none", f"not held on {host}: {output}", pair.story)
        kill_host(pair, host)
        time.sleep(0.1)  # what was let out has arrived; detection takes longer than this
        before = seen(observer)
        check_runs(pair, OTHER[host], before)
        wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 100,
                 pair.story)
        pair.start("run", host)
        wait_reprotected(pair, OTHER[host])
        so_far = seen(observer)
        wait_for("the stream goes on, protected", 30,
                 lambda: observer.error or min(observer.highest.values()) > so_far + 100, pair.story)
    observer.stop()
    check(not observer.went_back, f"values came again: {observer.went_back[:5]}", pair.story)
