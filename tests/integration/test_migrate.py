# SPDX-License-Identifier: Apache-2.0
"""Planned switchover: the guest moves and finds its memory whole; whatever fails before leaves it where it was."""
import json
import os
import signal

from services import Disk
from test_disks import wait_fio, writing
from understudy_test import HEAVY, PAGES, Process, check, wait_for


def migrate(pair, *options, expect=0, seconds=60):
    out, err, _ = pair.run.us("migrate", pair.config("alpha"), "--host", "alpha", "--json", *options, expect=expect,
                              seconds=seconds, network=pair.run.network("alpha"))
    return json.loads(out) if out.strip() else {"error": err}


def start_migrate(pair, *options):
    argv = [pair.run.understudy, "migrate", pair.config("alpha"), "--host", "alpha", *options]
    return Process("understudy migrate", argv, pair.log("migrate"), pair.run.network("alpha"))


def check_moved(pair, summary):
    """It runs there and nowhere else; here it is stopped, and the engine says where it went."""
    check(summary["state"] == "moved" and summary["downtime_ms"] > 0, f"not moved: {summary}", pair.story)
    status = pair.status("alpha")
    check(status["state"] == "moved" and "moved to beta" in status["reason"], "alpha does not say so", pair.story)
    check(not status["guest"]["running"], "alpha says that its guest runs", pair.story)
    pair.check_taken_over()
    check(pair.status("beta")["generation"] == status["generation"] == summary["generation"],
          "the generations differ", pair.story)
    check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)
    pair.engines["alpha"].signal(signal.SIGTERM)
    pair.engines["alpha"].wait(15)
    check(pair.qmp_status("alpha") not in ("running", None), "the guest left behind is not stopped", pair.story)


def check_stays(pair):
    """The guest runs on alpha, protected (again), and was not harmed."""
    pair.wait_ticks("alpha", 2)
    pair.wait_protected(seconds=40)
    pair.wait_ticks("alpha", 2)
    check(pair.ticking(2) == ["alpha"], "it runs elsewhere than on alpha alone", pair.story)


def finish(pair):
    for engine in pair.engines.values():
        if engine.running():
            engine.kill()
    for pid in pair.memory_guests():
        os.kill(pid, signal.SIGKILL)


def test_under_load(run):
    pair = run.pair(load=HEAVY).up()
    pair.wait_epochs(5)
    stop_watching = pair.watch()
    summary = migrate(pair, "--max-downtime", "400")
    stop_watching()
    check_moved(pair, summary)
    check(summary["copied_bytes"] > 0 and summary["rounds"] > 0 and summary["to"] == "beta", f"{summary}")
    return f"downtime {summary['downtime_ms']:.1f} ms, expected {summary['expected_downtime_ms']:.1f}"


def test_with_disks(run):
    """What fio wrote here it verifies there, to the byte of the instant at which it moved."""
    pair = writing(run, Disk(mib=16), Disk(mib=16, format="qcow2")).up()
    wait_fio(pair, count=1)
    stop_watching = pair.watch()
    summary = migrate(pair, "--max-downtime", "500")
    stop_watching()
    check_moved(pair, summary)
    wait_fio(pair, "beta", count=2)
    return f"downtime {summary['downtime_ms']:.1f} ms"


def test_unprotected_guest(run):
    """No engine runs: the command brings one, and takes it away again, moved or not."""
    pair = run.pair(load=PAGES).start_guest()
    out = migrate(pair, "--timeout", "2", "--max-downtime", "60", expect=1)
    check(out["state"] == "failed" and out["reason"], f"no standby, and it says {out}", pair.story)
    check(pair.status("alpha") is None, "the engine that it started is still there", pair.story)
    pair.wait_ticks("alpha", 2)
    pair.standby()
    summary = migrate(pair, "--max-downtime", "500")
    check(summary["state"] == "moved" and summary["rounds"] > 0, f"not moved: {summary}", pair.story)
    check(pair.qmp_status("alpha") not in ("running", None), "the guest left behind is not stopped", pair.story)
    pair.check_taken_over()
    check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)


def test_last_checkpoint_is_late(run):
    """What the last checkpoint takes longer than was expected the guest does not stand still for: it runs on, and moves with
    a later one."""
    pair = run.pair(load=PAGES, detect="20s").start_guest()
    pair.standby(faults=["ack-send@2=delay:2500"])  # the first copy is epoch 1
    summary = migrate(pair, "--max-downtime", "900")
    check(summary["taken_back"] >= 1, f"the guest waited for it: {summary}", pair.story)
    check(summary["downtime_ms"] < 2500, f"down for as long as it took: {summary}", pair.story)
    check(summary["state"] == "moved", f"not moved: {summary}", pair.story)
    pair.check_taken_over()
    check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)


def test_cancelled(run):
    """Ctrl-C while it copies, and while the guest is stopped: it runs on here."""
    pair = run.pair(load=PAGES).up()
    command = start_migrate(pair, "--max-downtime", "1")
    wait_for("the migration to begin", 20, lambda: pair.status("alpha")["migration"]["state"] == "copying", pair.story)
    command.signal(signal.SIGINT)
    check(command.wait(20) == 1, "a cancelled migration is a success", pair.story)
    check(pair.status("alpha")["migration"]["reason"] == "cancelled", "it does not say so", pair.story)
    check_stays(pair)
    pair.engines["beta"].kill()
    pair.standby(faults=["switch-load=delay:1500"])
    pair.wait_protected(seconds=40)
    command = start_migrate(pair, "--timeout", "1", "--timeout-action", "switchover")
    pair.wait_state("beta", "switching-over", seconds=20)
    command.signal(signal.SIGINT)
    check(command.wait(20) == 1, "a cancelled migration is a success", pair.story)
    check_stays(pair)
    check(not pair.verify()["differing"], "memory differs after all", pair.story)


def test_cancelled_before_it_was_protected(run):
    """Ctrl-C while the command's own engine looks for the standby, and in its first copy: nothing of it remains."""
    pair = run.pair(load=PAGES, proxy=True).start_guest()
    pair.proxy.rate = 4 << 20
    for phase in "connecting", "copying":
        if phase == "copying":
            pair.standby()
        command = start_migrate(pair)
        wait_for(f"the state {phase}", 30, lambda: (pair.status("alpha") or {}).get("state") == phase, pair.story)
        command.signal(signal.SIGINT)
        check(command.wait(20) == 1, f"cancelled while {phase}, it is a success", pair.story)
        check(pair.status("alpha") is None, "the engine that it started is still there", pair.story)
        pair.wait_ticks("alpha", 2)
    check(pair.ticking(2) == ["alpha"], "it runs elsewhere than on alpha alone", pair.story)


def test_cancelled_too_late(run):
    """Ctrl-C when the standby was told to run the guest: it moves, and the command says what became of it."""
    pair = run.pair(load=PAGES)
    pair.start_guest()
    pair.standby()
    pair.protect(faults=["handover-sent=delay:4000"])
    pair.wait_protected("alpha")
    command = start_migrate(pair, "--timeout", "1", "--timeout-action", "switchover")
    pair.wait_state("beta", "active", seconds=20)
    command.signal(signal.SIGINT)
    check(command.wait(20) == 0, "a move that was not cancelled is a failure", pair.story)
    check("too late to cancel" in open(command.log).read(), "it does not say so", pair.story)
    check(pair.status("alpha")["state"] == "moved", "alpha does not say that it moved", pair.story)
    pair.check_taken_over()
    check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)


def test_dirties_faster_than_the_link(run):
    """The downtime never fits: given up in time, or done all the same, as the operator said."""
    pair = run.pair(load=HEAVY, proxy=True).up()
    pair.proxy.rate = 2 << 20
    summary = migrate(pair, "--max-downtime", "20", "--timeout", "3", expect=1)
    check(summary["state"] == "failed" and "did not fit" in summary["reason"], f"{summary}", pair.story)
    pair.proxy.rate = 0
    check_stays(pair)
    summary = migrate(pair, "--max-downtime", "1", "--timeout", "2", "--timeout-action", "switchover")
    check_moved(pair, summary)


def fails_at(run, side, point, action, tag):
    """A migration in which one side fails at `point`."""
    pair = run.pair(tag=tag, load=PAGES, takeover="manual").start_guest()
    pair.standby(faults=[f"{point}={action}"] if side == "beta" else None)
    pair.protect(faults=[f"{point}={action}"] if side == "alpha" else None)
    pair.wait_epochs(3)
    migrate(pair, "--timeout", "1", "--timeout-action", "switchover", expect=None)
    if action == "kill":
        check(pair.engines[side].wait(20) == -signal.SIGKILL, f"nobody died at {point}", pair.story)
    return pair


def test_a_step_fails(run):
    """An error at each step before the standby runs the guest: it goes on here."""
    for side, point in (("alpha", "switch-captured"), ("beta", "switch-load"), ("alpha", "handover-send"),
                        ("beta", "handover-received")):
        pair = fails_at(run, side, point, "error", point)
        check_stays(pair)
        check(pair.status("alpha")["migration"]["state"] == "failed", f"an error at {point}, and no failure", pair.story)
        finish(pair)


def test_destination_killed(run):
    """Before it has the right to run the guest, the guest goes on here; after it runs, it is not stopped by that."""
    for point in "switch-load", "handover-received":
        pair = fails_at(run, "beta", point, "kill", point)
        pair.wait_ticks("alpha", 2)
        pair.standby()
        check_stays(pair)
        finish(pair)
    pair = fails_at(run, "beta", "started-send", "kill", "started-send")
    pair.wait_state("alpha", "moved", "yielded", seconds=20)
    check(pair.ticking(3) == ["beta"], "it runs elsewhere than on beta alone", pair.story)


def test_source_killed(run):
    """The guest is released by the guard until it is handed over; after that only the standby may run it."""
    pair = fails_at(run, "alpha", "switch-captured", "kill", "switch-captured")
    pair.wait_ticks("alpha", 2)
    pair.protect()
    check_stays(pair)
    finish(pair)
    for point, running in ("handover-send", []), ("started-received", ["beta"]):
        pair = fails_at(run, "alpha", point, "kill", point)
        check(pair.ticking(3) == running, f"killed at {point}: it runs elsewhere than on {running}", pair.story)
        if not running:  # loaded there, and for a person to start
            run.us("takeover", pair.config("beta"), "--host", "beta")
        pair.check_taken_over()
        check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)
        finish(pair)


def test_source_killed_when_handed_over(run):
    """Whether the word got out or not: at most one guest runs, and it can be had."""
    pair = fails_at(run, "alpha", "handover-sent", "kill", "handover-sent")
    status = pair.wait_state("beta", "lost", "active", seconds=20)
    check("alpha" not in pair.ticking(2), "the guest that was handed over runs on", pair.story)
    if status["state"] == "lost":
        run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()
    check(pair.ticking(2) == ["beta"], "it runs elsewhere than on beta alone", pair.story)


def test_usage(run):
    """Nonsense is refused before anything is touched, and a standby moves nothing."""
    pair = run.pair().start_guest()
    pair.standby()
    for options in (["--max-downtime", "0"], ["--max-downtime", "5x"], ["--timeout", "-1"], ["--timeout-action", "wait"]):
        migrate(pair, *options, expect=2)
    _, err, _ = run.us("migrate", pair.config("beta"), "--host", "beta", expect=4)
    check("the guest runs on alpha" in err, f"a standby was asked, and says {err}", pair.story)


# So much that what is written within 4 ms of a checkpoint is too much to be carried in time; a tenth of it is not.
DIRTIES = "us.mem=8M us.rate=10000 us.mode=random us.check=2000"
FASTER = ("--bandwidth", "6M", "--max-downtime", "60")


def test_throttled(run):
    """It dirties faster than the lanes may carry: without help it does not move, slowed it does, and is whole."""
    pair = run.pair(load=DIRTIES).up()
    pair.wait_epochs(5)
    summary = migrate(pair, *FASTER, "--timeout", "3", expect=1)
    check(summary["state"] == "failed" and "did not fit" in summary["reason"], f"{summary}", pair.story)
    check(summary["stopped_percent_max"] == 0, f"slowed without being asked: {summary}")
    check_stays(pair)
    summary = migrate(pair, *FASTER[:3], "70", "--timeout", "4", "--timeout-action", "throttle")
    check(summary["stopped_percent_max"] > 0, f"moved without having been slowed: {summary}", pair.story)
    check_moved(pair, summary)
    return f"stopped for up to {summary['stopped_percent_max']} %, downtime {summary['downtime_ms']:.0f} ms"


def wait_throttled(pair, seconds=30):
    wait_for("the guest to be slowed", seconds,
             lambda: (pair.status("alpha") or {}).get("migration", {}).get("stopped_percent", 0) > 0, pair.story)


def test_throttle_cancelled(run):
    """Ctrl-C while the guest is slowed, and time that is up although it was: full speed again, on this host."""
    pair = run.pair(load=DIRTIES).up()
    options = (*FASTER[:3], "1", "--timeout", "1", "--timeout-action", "throttle")
    command = start_migrate(pair, *options)
    wait_throttled(pair)
    command.signal(signal.SIGINT)
    check(command.wait(20) == 1, "a cancelled migration is a success", pair.story)
    status = pair.status("alpha")["migration"]
    check(status["reason"] == "cancelled" and status["stopped_percent"] == 0, f"{status}", pair.story)
    check_stays(pair)
    summary = migrate(pair, *options, expect=1)
    check(summary["state"] == "failed" and "was slowed" in summary["reason"], f"{summary}", pair.story)
    check(summary["stopped_percent"] == 0 < summary["stopped_percent_max"], f"{summary}", pair.story)
    check_stays(pair)


def test_throttle_and_the_engine_dies(run):
    """SIGKILL while the guest is stopped in order to slow it: it runs on, and nothing of it remains."""
    pair = run.pair(load=PAGES).start_guest()
    pair.standby()
    pair.protect(faults=["throttle-stopped@3=kill"])
    pair.wait_epochs(3)
    start_migrate(pair, "--max-downtime", "1", "--timeout", "1", "--timeout-action", "throttle")
    check(pair.engines["alpha"].wait(30) == -signal.SIGKILL, "nobody died", pair.story)
    pair.wait_ticks("alpha", 3)
    check(pair.qmp_status("alpha") == "running", "QEMU does not say that its guest runs", pair.story)
    pair.protect(faults=["throttle-stopped@2=error"])
    check_stays(pair)
    summary = migrate(pair, "--max-downtime", "1", "--timeout", "1", "--timeout-action", "throttle", expect=1)
    check("was slowed" in summary["reason"], f"an error while it is slowed, and {summary}", pair.story)
    check_stays(pair)
    check(not pair.verify()["differing"], "memory differs after all", pair.story)
