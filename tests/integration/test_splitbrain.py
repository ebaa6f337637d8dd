# SPDX-License-Identifier: Apache-2.0
"""Who may run the guest: the generation and the arbiter decide, whatever wakes up late."""
import signal

from understudy_test import check, wait_for


def test_late_primary_yields(run):
    """The old primary (engine and guest) sleeps through a takeover; when it wakes up it stops its guest."""
    pair = run.pair(takeover="auto").up()
    pair.wait_epochs(10)
    for process in pair.qemu, pair.engines["alpha"]:
        process.signal(signal.SIGSTOP)
    pair.check_taken_over()
    ticks = len(pair.serial("alpha").ticks())
    for process in pair.engines["alpha"], pair.qemu:
        process.signal(signal.SIGCONT)
    wait_for("the old primary yields", 20,
             lambda: (pair.status("alpha") or {}).get("state") == "yielded" or
             not pair.engines["alpha"].running(), pair.story)
    check(pair.ticking(4) == ["beta"], "not exactly beta's guest runs", pair.story)
    return f"{len(pair.serial('alpha').ticks()) - ticks} ticks of the old guest before it yielded"


def test_yields_over_the_link(run):
    """Cut off, taken over on both sides' terms: with the link back only the newer generation runs."""
    pair = run.pair(takeover="auto", proxy=True).up()
    pair.wait_epochs(10)
    pair.proxy.cut()
    winner = wait_for("one side goes on alone", 20, lambda:
                      "beta" if (pair.status("beta") or {}).get("state") == "active" else
                      "alpha" if (pair.status("alpha") or {}).get("generation", 1) > 1 and
                      (pair.status("alpha") or {}).get("state") != "yielded" else None, pair.story)
    pair.proxy.mend()
    wait_for("exactly one guest runs", 30, lambda: len(pair.ticking(3)) == 1, pair.story)
    running = pair.ticking(3)
    check(len(running) == 1, f"running: {running}", pair.story)
    return f"{winner} went on"


def test_restarted_primary_stays_down(run):
    """A primary's engine that starts again after a takeover must not protect, nor let run, its old guest."""
    pair = run.pair(takeover="auto").up()
    pair.wait_epochs(10)
    pair.engines["alpha"].signal(signal.SIGKILL)
    pair.qemu.signal(signal.SIGSTOP)
    pair.check_taken_over()
    pair.qemu.signal(signal.SIGCONT)
    pair.protect(protected=False)
    wait_for("the restarted primary yields or is refused", 30,
             lambda: (pair.status("alpha") or {}).get("state") == "yielded" or
             not pair.engines["alpha"].running(), pair.story)
    check(pair.ticking(4) == ["beta"], "not exactly beta's guest runs", pair.story)


def test_unsafe_policy_is_refused(run):
    """Both sides allowed to go alone, and nobody to ask: refused before anything starts."""
    pair = run.pair(takeover="auto", standby_loss="continue", arbiter="none")
    for command, host in ("protect", "alpha"), ("standby", "beta"):
        _, err, _ = run.us(command, pair.config(host), "--host", host, expect=2)
        check("arbiter" in err, f"{command}: the reason does not name the arbiter: {err}")
    pair.write_config(takeover="sometimes", arbiter="none")
    _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=2)
    check("takeover" in err and "sometimes" in err, f"the reason names neither key nor value: {err}")


def test_force_without_arbiter_answer(run):
    """An arbiter that cannot be reached stops an automatic takeover; the operator may override it."""
    pair = run.pair(takeover="auto", arbiter="file:/nonexistent/directory/register")
    pair.start_guest()
    pair.standby()
    pair.protect()
    pair.wait_epochs(5)
    pair.kill_primary()
    wait_for("the standby gives a reason", 20,
             lambda: (lambda s: s and not s["protected"] and s["state"] != "receiving" and s["reason"])(
                 pair.status("beta")), pair.story)
    check(pair.ticking(3) == [], "the standby went on without the arbiter", pair.story)
    run.us("takeover", pair.config("beta"), "--host", "beta", "--force")
    pair.check_taken_over()
