# SPDX-License-Identifier: Apache-2.0
"""The kinds of guest: each is protected, compared whole with its standby, killed, and goes on there."""
import os
import signal
import time

import processes
from qmp import Qmp
from understudy_test import LIGHT, PAGES, check, wait_for


def protect_and_lose(run, **options):
    pair = run.pair(takeover="auto", boot=True, **options).up()
    pair.wait_epochs(10)
    found = pair.verify()
    check(not found["differing"], f"memory differs: {found}", pair.story)
    stop_watching = pair.watch()
    pair.wait_epochs(10)
    pair.kill_primary()
    stop_watching()
    pair.check_taken_over()
    return pair


def test_pc(run):
    protect_and_lose(run, machine="pc")


def test_microvm(run):
    protect_and_lose(run, machine="microvm")


def test_smp4(run):
    protect_and_lose(run, smp=4, load=PAGES)


def test_shared_memory(run):
    protect_and_lose(run, shared=True, load=PAGES)


def test_unprivileged_sandboxed(run):
    pair = protect_and_lose(run, unprivileged=True)
    return f"machine {pair.machine}"


def test_computes_the_same(run):
    """A guest that was taken over ends with the result of one that ran alone, and faster."""
    load = "us.mem=8M us.check=4000 us.steps=30000"
    whole = run.pair(tag="whole", load=f"{load} us.rate=6000", smp=2).start_guest()
    pair = run.pair(takeover="auto", load=f"{load} us.rate=2000", smp=2).up()
    pair.wait_epochs(20)
    time.sleep(run.random.uniform(0, 2))
    check(not pair.serial("alpha").result(), "the guest ended before it was taken over", pair.story)
    pair.kill_primary()

    def results():
        found = whole.serial("alpha"), pair.serial("beta")
        wrong = [serial.corrupt() for serial in found if serial.corrupt()]
        check(not wrong, f"{wrong}", pair.story)
        return all(serial.result() for serial in found) and [serial.result() for serial in found]
    alone, taken_over = wait_for("both results", 60, results, lambda: whole.story() + pair.story(), every=0.1)
    check(alone == taken_over, f"taken over it computes {taken_over}, alone {alone}")


def test_disk_reads_in_flight(run):
    """O_DIRECT reads fill pages without a fault: no such write may be missed."""
    pair = run.pair(disk=True, load=LIGHT + " us.disk=/dev/vda", interval="20ms")
    pair.up()
    for _ in range(3):
        pair.wait_epochs(20)
        found = pair.verify()
        check(not found["differing"], f"memory differs: {found}", pair.story)
    pair.wait_ticks("alpha", 2)
    stop_watching = pair.watch()
    pair.kill_primary()
    stop_watching()
    run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()


def test_stopped_by_the_administrator(run):
    """Somebody else stops the guest and lets it run again: both stay as they wished, protection goes on."""
    with_monitor = run.pair()
    with_monitor.start_guest()
    with Qmp(with_monitor.path("alpha.qmp")) as qmp:
        qmp("stop")
    with_monitor.standby()
    with_monitor.protect()
    check(with_monitor.ticking(3) == [], "the engine let a guest run that an administrator had stopped",
          with_monitor.story)
    with_monitor.engines["alpha"].signal(signal.SIGTERM)
    with_monitor.engines["alpha"].wait(15)
    check(with_monitor.qmp_status("alpha") == "paused", "the engine's end let the guest run", with_monitor.story)
    with Qmp(with_monitor.path("alpha.qmp")) as qmp:
        qmp("cont")
    with_monitor.wait_ticks("alpha", 2)


def test_mismatched_machines(run):
    """Different machine types: refused, with both named, and no byte of the guest sent."""
    pair = run.pair(machine="q35", standby_machine="pc")
    pair.start_guest()
    pair.standby()
    pair.protect(protected=False)
    status = wait_for("a refusal", 30, lambda: (lambda s: s and "q35" in s["reason"] and s)(pair.status("alpha")),
                      pair.story)
    check("i440fx" in status["reason"] or "pc-i440" in status["reason"],
          f"the standby's machine type is not named: {status['reason']}")
    pair.wait_ticks("alpha", 2)
    return status["reason"]


def test_mismatched_memory(run):
    pair = run.pair()
    pair.start_guest()
    pair.memory = 160
    pair.write_config()
    pair.standby()
    pair.memory = 128
    pair.protect(protected=False)
    status = wait_for("a refusal", 30, lambda: (lambda s: s and "refuses" in s["reason"] and s)(pair.status("alpha")),
                      pair.story)
    check(str(128 << 20) in status["reason"] and str(160 << 20) in status["reason"],
          f"both sizes should be named: {status['reason']}")


def test_broken_standby_command(run):
    """The standby's QEMU does not start: its own last words reach the operator of both sides."""
    pair = run.pair()
    pair.start_guest()
    pair.write_config(host_keys={"beta": {"command": "qemu-system-x86_64 -M no-such-machine"}})
    pair.standby(ready=False)
    pair.protect(protected=False)
    for host in "alpha", "beta":
        wait_for(f"QEMU's last words on {host}", 20, lambda: "Use -machine help" in
                 (pair.status(host) or {}).get("reason", ""), pair.story)
    pair.wait_ticks("alpha", 2)


def test_second_engine_is_refused(run):
    pair = run.pair().up()
    _, err, _ = run.us("protect", pair.config("alpha"), "--host", "alpha", expect=(1, 4))
    check(err.strip(), "a second engine was refused without a reason")
    pair.wait_epochs(5)


def test_long_lines_of_life(run):
    """Two thousand checkpoints at 5 ms: neither engine grows."""
    pair = run.pair(interval="5ms", pause_share="60").up()
    pair.wait_epochs(200, seconds=60)
    before = {host: processes.rss(pair.engines[host].pid) for host in ("alpha", "beta")}
    began = time.monotonic()
    target = int(os.environ.get("UNDERSTUDY_EPOCHS", "2000"))
    first = pair.status("alpha")["checkpoints"]
    wait_for(f"{target} checkpoints", 80 + target / 10, lambda: pair.status("alpha")["checkpoints"] - first >= target
             or time.monotonic() - began > 60, pair.story, every=0.2)
    made = pair.status("alpha")["checkpoints"] - first
    check(made >= min(target, 500), f"only {made} checkpoints in {time.monotonic() - began:.0f} s", pair.story)
    grown = {host: processes.rss(pair.engines[host].pid) - size for host, size in before.items()}
    # The standby may take one more chunk of its staging into use (2 MiB, restore/pool.h), once.
    check(max(grown.values()) < (2 << 20) + (512 << 10), f"over {made} checkpoints the engines grew by {grown} bytes", pair.story)
    return f"{made} checkpoints, {made / (time.monotonic() - began):.0f} a second, growth {grown}"
