# SPDX-License-Identifier: Apache-2.0
"""Losing and finding the other side: protection ends, says so, and comes back with only what changed."""
import os
import signal

import processes
from understudy_test import HEAVY, check, wait_for

MIB = 1 << 20


def test_cut_and_back(run):
    """The link is cut for a while: the guest runs on, and the resynchronisation is a delta."""
    pair = run.pair(proxy=True).up()
    pair.wait_epochs(10)
    full = pair.proxy.bytes["forward"]
    pair.proxy.cut()
    wait_for("protection lost", 20, lambda: not pair.status("alpha")["protected"], pair.story)
    check(pair.status("alpha")["reason"], "unprotected, and no reason in status", pair.story)
    pair.wait_ticks("alpha", 3)
    before = pair.proxy.bytes["forward"]
    pair.proxy.mend()
    pair.wait_protected(seconds=30)
    pair.wait_epochs(1)
    delta = pair.proxy.bytes["forward"] - before
    check(delta < full / 2, f"resynchronisation sent {delta} bytes where the whole copy had sent {full}",
          pair.story)
    check(not pair.verify()["differing"], "memory differs after the resynchronisation", pair.story)
    return f"whole copy {full} bytes, resynchronisation {delta}"


def test_called_ahead(run):
    """The standby's guest is started while the primary still attaches to its own, however long that takes."""
    pair = run.pair().start_guest()
    pair.standby()
    pair.protect(protected=False, faults=["attach=delay:6500"])  # the standby hangs up after 5 s
    there = wait_for("the standby's guest", 4, lambda: pair.status("beta")["guest"]["pid"], pair.story)
    check(not pair.ask("alpha", seconds=0.5), "the primary had attached before", pair.story)
    pair.wait_protected()
    check(pair.status("beta")["guest"]["pid"] == there, "it was started twice", pair.story)


def test_called_ahead_in_vain(run):
    """A guest that could not be started ahead is started when it is asked for."""
    pair = run.pair().start_guest()
    pair.standby(faults=["prepare@1=error"])
    pair.protect(faults=["attach=delay:1000"])
    with open(pair.log("alpha-protect")) as log:
        check("refuses" not in log.read(), "the standby refused for want of a guest", pair.story)


def test_unplugged_and_back(run):
    """No reset, no FIN: silence alone tells."""
    pair = run.pair(detect="1s").up()
    pair.wait_epochs(10)
    run.link(False)
    wait_for("protection lost", 20, lambda: not pair.status("alpha")["protected"], pair.story)
    pair.wait_ticks("alpha", 2)
    run.link(True)
    pair.wait_protected(seconds=40)


def test_one_way_silence(run):
    """Only the way back is gone: the primary must notice too, and the guest must not stop."""
    pair = run.pair(proxy=True).up()
    pair.wait_epochs(10)
    pair.proxy.hold("backward")
    wait_for("protection lost", 20, lambda: not pair.status("alpha")["protected"], pair.story)
    pair.wait_ticks("alpha", 2)
    pair.proxy.mend()
    pair.wait_protected(seconds=40)


def test_stall(run):
    """standby-loss = stall: no checkpoint, no guest, until the operator says otherwise."""
    pair = run.pair(proxy=True, standby_loss="stall").up()
    pair.wait_epochs(10)
    pair.proxy.cut()
    pair.wait_state("alpha", "stalled", seconds=20)
    check(pair.ticking(3) == [], "the guest of a stalled primary runs", pair.story)
    run.us("continue", pair.config("alpha"), "--host", "alpha")
    pair.wait_ticks("alpha", 2)
    check(not pair.status("alpha")["protected"], "unprotected, but status says otherwise", pair.story)


def test_standby_killed_and_back(run):
    pair = run.pair().up()
    pair.wait_epochs(10)
    pair.engines["beta"].kill()
    wait_for("protection lost", 20, lambda: not pair.status("alpha")["protected"], pair.story)
    pair.wait_ticks("alpha", 2)
    pair.standby()
    pair.wait_protected(seconds=40)
    check(not pair.verify()["differing"], "memory differs after the standby's return", pair.story)
    check(len(pair.memory_guests()) == 2, f"QEMUs left over: {pair.memory_guests()}", pair.story)


def test_waiting_guest_killed_and_back(run):
    """The waiting QEMU dies: its checkpoint is gone, and a fresh one is filled."""
    pair = run.pair().up()
    pair.wait_epochs(5)
    first = pair.status("beta")["guest"]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for("another waiting guest under protection", 40,
             lambda: (pair.status("alpha") or {}).get("protected") and
             (pair.status("beta") or {}).get("guest", {}).get("pid") not in (first, None), pair.story)
    check(pair.engines["beta"].running(), "the standby's engine ended with its guest", pair.story)
    pair.wait_epochs(5)
    check(not pair.verify()["differing"], "memory differs", pair.story)


def test_engine_killed_and_back(run):
    """The engine dies, the guest does not notice; a new engine attaches and protects it again."""
    pair = run.pair().up()
    for _ in range(3):
        pair.wait_epochs(5)
        pair.engines["alpha"].kill()
        pair.wait_ticks("alpha", 2)
        pair.protect()
    check(not pair.verify()["differing"], "memory differs after re-attachment", pair.story)


def test_slow_standby(run):
    """A slow wire slows the checkpoints. It neither stops the guest nor grows the engine."""
    pair = run.pair(proxy=True, load=HEAVY, interval="20ms", detect="4s")
    pair.start_guest()
    pair.standby()
    pair.protect()
    pair.wait_epochs(20)
    pair.proxy.rate = 4 * MIB
    pid = pair.engines["alpha"].pid
    pair.wait_epochs(3, seconds=60)
    first = processes.rss(pid)
    ticks = len(pair.wait_ticks("alpha", 8))
    status = pair.status("alpha")
    grown = processes.rss(pid) - first
    check(grown < 16 * MIB, f"the engine grew by {grown} bytes behind a slow wire", pair.story)
    check(status["staging"]["used_peak_bytes"] <= status["staging"]["configured_bytes"],
          f"staging beyond its bound: {status['staging']}")
    return f"grew {grown} bytes over {ticks} ticks"


def test_full_staging(run):
    """A standby that may stage less than one checkpoint needs refuses by name and keeps its last commit."""
    pair = run.pair(load=HEAVY, standby_staging="1MiB", pause_limit="5s", staging="128MiB")
    pair.start_guest()
    pair.standby()
    pair.protect(protected=False)
    status = wait_for("a refusal that names staging", 60,
                      lambda: (lambda s: s and "staging" in s["reason"] and s)(pair.status("alpha")), pair.story)
    pair.wait_ticks("alpha", 2)
    check(pair.engines["beta"].running(), "the standby ended", pair.story)
    return status["reason"]


def test_ends_in_order(run):
    """stop, SIGINT and SIGTERM: exit code 0, guest untouched, nothing left behind, no takeover."""
    pair = run.pair(takeover="auto").up()
    for way in "stop", signal.SIGINT, signal.SIGTERM:
        pair.wait_epochs(3)
        engine = pair.engines["alpha"]
        if way == "stop":
            run.us("stop", pair.config("alpha"), "--host", "alpha")
        else:
            engine.signal(way)
        code = engine.wait(15)
        check(code == 0, f"the primary's engine ended with {code} after {way}", pair.story)
        pair.wait_ticks("alpha", 2)
        check(pair.serial("beta").text() == "", f"the standby took over after {way}", pair.story)
        pair.protect()
    for way in signal.SIGINT, signal.SIGTERM, "stop":
        engine = pair.engines["beta"]
        if way == "stop":
            run.us("stop", pair.config("beta"), "--host", "beta")
        else:
            engine.signal(way)
        code = engine.wait(15)
        check(code == 0, f"the standby's engine ended with {code} after {way}", pair.story)
        wait_for("the waiting QEMU ends with its engine", 10, lambda: len(pair.memory_guests()) == 1, pair.story)
        pair.standby()
    pair.wait_protected(seconds=40)
    out, _, code = run.us("status", pair.path("no-such.ini"), "--host", "alpha", expect=2)
    pair.engines["alpha"].signal(signal.SIGTERM)
    pair.engines["alpha"].wait(15)
    run.us("status", pair.config("alpha"), "--host", "alpha", expect=3)
    left = [name for name in os.listdir(pair.path("run")) if name.startswith("web.alpha")]
    check(not [name for name in left if name.endswith(".sock")], f"control socket left behind: {left}")
