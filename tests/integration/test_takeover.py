# SPDX-License-Identifier: Apache-2.0
"""Takeover: the primary dies, the guest goes on at the standby and lost nothing that was acknowledged."""
import os
import signal

from understudy_test import HEAVY, LIGHT, PAGES, check, wait_for


def test_auto(run):
    pair = run.pair(takeover="auto", boot=True).up()
    pair.wait_epochs(20)
    stop_watching = pair.watch()
    ticks = pair.wait_ticks("alpha", 2)
    pair.kill_primary()
    stop_watching()
    check(pair.acknowledged > 0, "no checkpoint was acknowledged before the kill", pair.story)
    first = pair.check_taken_over()
    status = pair.status("beta")
    check(status["guest"]["running"], "status does not say that the guest runs", pair.story)
    check(set(status["takeover_ms"]) >= {"detect", "arbitrate", "apply", "load", "run", "total"},
          f"takeover_ms is {status.get('takeover_ms')}")
    return (f"last tick {ticks[-1][0]}, acknowledged {pair.acknowledged}, first after {first}, "
            f"takeover {status['takeover_ms']['total']:.0f} ms")


def test_soak(run):
    """The same at random moments, with every workload. UNDERSTUDY_SOAK raises the number of rounds."""
    rounds = int(os.environ.get("UNDERSTUDY_SOAK", "3"))
    loads = [LIGHT, PAGES, HEAVY]
    for number in range(rounds):
        load = loads[number % len(loads)]
        interval = run.random.choice(["10ms", "30ms", "50ms", "100ms"])
        pair = run.pair(tag=f"soak{number}", takeover="auto", load=load, interval=interval)
        run.log(f"round {number}: {load}, interval {interval}")
        pair.up()
        stop_watching = pair.watch()
        pair.wait_epochs(run.random.randrange(1, 60))
        wait_for("a random moment", 10, lambda: run.random.random() < 0.05)
        pair.kill_primary()
        stop_watching()
        pair.check_taken_over()
        pair.engines["beta"].signal(signal.SIGKILL)
        for pid in pair.memory_guests():
            os.kill(pid, signal.SIGKILL)
    return f"{rounds} rounds, seed {run.seed}"


def test_manual(run):
    """The standby waits for the operator, and says what it waits for."""
    pair = run.pair(takeover="manual").up()
    pair.wait_epochs(10)
    pair.kill_primary()
    status = pair.wait_state("beta", "lost", seconds=20)
    check(status["reason"], "a lost primary, and no reason in status", pair.story)
    check(pair.serial("beta").text() == "", "the standby's guest ran without being told to", pair.story)
    run.us("takeover", pair.config("beta"), "--host", "beta")
    pair.check_taken_over()


def test_qemu_crashes(run):
    """QEMU alone dies: its engine knows for certain and says so; nobody waits for silence."""
    pair = run.pair(takeover="auto", detect="20s").up()
    pair.wait_epochs(10)
    stop_watching = pair.watch()
    pair.qemu.kill()
    pair.check_taken_over(seconds=10)
    stop_watching()


def test_survives_engine(run):
    """A taken-over guest outlives the standby's engine."""
    pair = run.pair(takeover="auto").up()
    pair.wait_epochs(5)
    pair.kill_primary()
    pair.check_taken_over()
    pair.engines["beta"].kill()
    pair.wait_ticks("beta", 3)


def test_guest_ends_after_takeover(run):
    """The engine of a taken-over guest ends in order when its guest does."""
    pair = run.pair(takeover="auto").up()
    pair.wait_epochs(5)
    pair.kill_primary()
    pair.check_taken_over()
    os.kill(pair.guest_pid("beta"), signal.SIGTERM)
    code = pair.engines["beta"].wait(20)
    check(code == 0, f"the engine ended with {code}", pair.story)


def test_guest_shutdown_is_no_takeover(run):
    """A guest that ends in order ended on purpose: the standby must not bring it back."""
    pair = run.pair(takeover="auto", load=LIGHT + " us.end=12").up()
    wait_for("the guest powers off", 40, lambda: not pair.qemu.running(), pair.story, every=0.1)
    pair.engines["alpha"].wait(20)
    active = pair.ticking(4)
    check(active == [], f"after an orderly end the guest still runs on {active}", pair.story)
    check((pair.status("beta") or {}).get("state") not in ("active", "taking-over"),
          "the standby took over a guest that had shut down", pair.story)


def test_planned(run):
    """An operator takes over while the primary lives: the old primary's guest stops, the new one runs."""
    pair = run.pair(takeover="manual").up()
    pair.wait_epochs(10)
    stop_watching = pair.watch()
    run.us("takeover", pair.config("beta"), "--host", "beta")
    stop_watching()
    pair.check_taken_over()
    wait_for("the old primary yields", 20,
             lambda: (pair.status("alpha") or {}).get("state") == "yielded" or
             not pair.engines["alpha"].running(), pair.story)
    check(pair.ticking(4) == ["beta"], "not exactly beta's guest runs", pair.story)
