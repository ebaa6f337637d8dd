# SPDX-License-Identifier: Apache-2.0
"""Every numbered fault point, on the side where it lies: the engine dies there, and its promise holds."""
import os
import signal

from understudy_test import PAGES, check, wait_for

# Point: the pass at which it strikes, so that it strikes in the middle of something.
PRIMARY = {"attach": 1, "baseline": 1, "copy-round": 1, "capture-paused": 3, "capture-scanned": 3,
           "capture-copied": 3, "capture-resumed": 3, "encode": 4, "commit-send": 3, "commit-sent": 3,
           "ack-received": 3}
STANDBY = {"prepare": 1, "stage-pages": 4, "stage-state": 2, "verify-epoch": 2, "ack-send": 2, "apply-begin": 2,
           "apply-half": 2, "apply-end": 2}
TAKEOVER = ["takeover-begin", "takeover-arbitrated", "takeover-load", "takeover-run", "takeover-announce"]
BOTH = ["generation-store"]
# Reached only by a guest with disks: test_disks.py strikes them, and the unit tests of both halves do.
DISKS = ["disk-change", "journal-write", "journal-commit", "journal-committed", "journal-apply"]
# Passed in a planned switchover only: test_migrate.py strikes them.
SWITCHOVER = ["throttle-stopped", "switch-captured", "handover-send", "handover-sent", "started-received", "switch-load",
              "handover-received", "started-send"]
# Passed where a guest was left behind: test_reprotect.py strikes them.
REPROTECTION = ["keep-memory", "keep-fill"]


def test_every_point_is_listed_here(run):
    known = set(PRIMARY) | set(STANDBY) | set(TAKEOVER) | set(BOTH) | set(DISKS) | set(SWITCHOVER) | set(REPROTECTION)
    listed = set(run.fault_points())
    check(known == listed, f"fault points without a test: {listed - known}; tests without a point: {known - listed}")
    _, err, code = run.us("status", "x.ini", environment={"UNDERSTUDY_FAULT": "no-such-point=kill"}, expect=None)
    check(code != 0 and "no-such-point" in err, f"an unknown point is not refused: {code} {err}")


def kill_primary_at(run, points):
    """The primary's engine dies at each point in turn; the guest goes on, a new engine protects it."""
    pair = run.pair(load=PAGES).start_guest()
    pair.standby()
    for point, number in points.items():
        engine = pair.protect(protected=False, faults=[f"{point}@{number}=kill"])
        code = engine.wait(40)
        check(code == -signal.SIGKILL, f"at {point} the engine ended with {code}", pair.story)
        run.log(f"{point}: killed; QEMU says {pair.qmp_status('alpha')}")
        engine = pair.protect()
        pair.wait_ticks("alpha", 2)
        if point != list(points)[-1]:
            engine.kill()
    check(not pair.verify()["differing"], "memory differs after all", pair.story)
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()


def test_primary_killed_before_a_checkpoint(run):
    kill_primary_at(run, {point: PRIMARY[point] for point in list(PRIMARY)[:4]})


def test_primary_killed_in_the_pause(run):
    kill_primary_at(run, {point: PRIMARY[point] for point in list(PRIMARY)[4:7]})


def test_primary_killed_while_sending(run):
    kill_primary_at(run, {point: PRIMARY[point] for point in list(PRIMARY)[7:]})


def test_guest_runs_after_a_kill_in_the_pause(run):
    """Not even until the next engine comes may a killed engine leave the guest stopped."""
    pair = run.pair().start_guest()
    pair.standby()
    for point in "baseline", "capture-paused", "capture-scanned", "capture-copied":
        engine = pair.protect(protected=False, faults=[f"{point}@{PRIMARY[point]}=kill"])
        engine.wait(40)
        pair.wait_ticks("alpha", 2)


def kill_standby_at(run, points, action="kill"):
    """The standby's engine dies at each point; the guest goes on, a new standby is filled."""
    pair = run.pair(load=PAGES).start_guest()
    engine = pair.standby()
    pair.protect()
    for point, number in points.items():
        engine.kill()
        engine = pair.standby(faults=[f"{point}@{number}={action}"])
        code = engine.wait(40)
        check(code == -signal.SIGKILL, f"at {point} the standby ended with {code}", pair.story)
        pair.wait_ticks("alpha", 1)
        engine = pair.standby()
        pair.wait_protected(seconds=40)
    check(not pair.verify()["differing"], "memory differs after all", pair.story)
    pair.kill_primary()
    run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()


def test_standby_killed_while_staging(run):
    kill_standby_at(run, {point: STANDBY[point] for point in list(STANDBY)[:4]})


def test_standby_killed_while_committing(run):
    kill_standby_at(run, {point: STANDBY[point] for point in list(STANDBY)[4:]})


def test_primary_dies_with_the_standby_in_mid_epoch(run):
    """The primary dies while the standby is slow at each step: the last acknowledged checkpoint is resumed."""
    for point in "stage-state", "verify-epoch", "ack-send", "apply-half":
        pair = run.pair(tag=f"mid-{point}", takeover="manual", load=PAGES)
        pair.start_guest()
        pair.standby(faults=[f"{point}@20=delay:1500"])
        pair.protect()
        stop_watching = pair.watch()
        committed = pair.status("beta")["committed_epoch"]
        wait_for("the standby to be slow", 40, lambda: is_stuck(pair), pair.story)
        pair.kill_primary()
        stop_watching()
        run.us("takeover", pair.config("beta"), "--host", "beta")
        pair.check_taken_over()
        check(pair.status("beta")["committed_epoch"] >= committed, "an older checkpoint was resumed", pair.story)
        pair.engines["beta"].kill()
        for pid in pair.memory_guests():
            os.kill(pid, signal.SIGKILL)


def is_stuck(pair):
    status = pair.status("alpha")
    return status and status["protected"] and (status["commit_age_ms"] or 0) > 400


def failed_takeover(run, point, action):
    pair = run.pair(tag=f"{point}-{action}", takeover="manual").start_guest()
    pair.standby(faults=[f"{point}={action}"])
    pair.protect()
    pair.wait_epochs(5)
    pair.kill_primary()
    pair.wait_state("beta", "lost", seconds=20)
    run.us("takeover", pair.config("beta"), "--host", "beta", expect=(1, 3, 4))
    return pair


def finish(pair):
    pair.engines["beta"].kill()
    for pid in pair.memory_guests():
        os.kill(pid, signal.SIGKILL)


def test_standby_killed_in_a_takeover(run):
    """Two failures: nothing is promised but this, that no second guest ever runs. Announced means running."""
    for point in TAKEOVER:
        pair = failed_takeover(run, point, "kill")
        pair.engines["beta"].wait(20)
        running = pair.ticking(3)
        expected = ["beta"] if point == "takeover-announce" else []
        check(running == expected, f"killed at {point}: running on {running}", pair.story)
        finish(pair)


def test_takeover_step_fails(run):
    """A step that fails with an error ends in a named state, not in silence; a failed announcement is no
    failed takeover."""
    for point in "takeover-load", "takeover-run":
        pair = failed_takeover(run, point, "error")
        status = pair.wait_state("beta", "failed", seconds=20)
        check(status["reason"], "failed without a reason", pair.story)
        check(pair.ticking(2) == [], "a failed takeover left a running guest", pair.story)
        finish(pair)
    pair = run.pair(tag="announce-error", takeover="manual").start_guest()
    pair.standby(faults=["takeover-announce=error"])
    pair.protect()
    pair.kill_primary()
    pair.wait_state("beta", "lost", seconds=20)
    run.us("takeover", pair.config("beta"), "--host", "beta", expect=None)
    pair.check_taken_over()


def test_generation_store(run):
    """The generation cannot be stored: nobody runs a guest by a right that a crash would forget."""
    for action in "kill", "error":
        pair = run.pair(tag=f"store-{action}", takeover="manual").start_guest()
        standby = pair.standby()
        pair.protect()
        pair.wait_epochs(3)
        standby.kill()
        pair.standby(faults=[f"generation-store@1={action}"])
        wait_for("protection, or the standby's end", 40, lambda: not pair.engines["beta"].running() or
                 pair.status("alpha")["protected"], pair.story)
        pair.kill_primary()
        if pair.engines["beta"].running():
            pair.wait_state("beta", "lost", "failed", seconds=20)
            run.us("takeover", pair.config("beta"), "--host", "beta", expect=None)
        check(pair.ticking(3) in ([], ["beta"]), "two guests run", pair.story)
        finish(pair)


def test_errors_instead_of_deaths(run):
    """The same points with an error instead of a death: the session ends with a reason and comes back."""
    pair = run.pair(load=PAGES).start_guest()
    standby = pair.standby()
    for point in "copy-round", "capture-paused", "capture-scanned", "capture-copied", "encode", "commit-send":
        engine = pair.protect(protected=False, faults=[f"{point}@{max(2, PRIMARY[point])}=error"])
        pair.wait_protected(seconds=40)
        pair.wait_epochs(8, seconds=40)
        check(engine.running(), f"an error at {point} ended the engine", pair.story)
        engine.signal(signal.SIGTERM)
        engine.wait(15)
    pair.protect()
    for point in "stage-pages", "stage-state", "verify-epoch", "ack-send", "apply-begin", "apply-half":
        standby.kill()
        standby = pair.standby(faults=[f"{point}@{STANDBY[point] + 2}=error"])
        pair.wait_protected(seconds=40)
        pair.wait_epochs(8, seconds=40)
        check(standby.running(), f"an error at {point} ended the standby", pair.story)
    check(not pair.verify()["differing"], "memory differs after all", pair.story)
