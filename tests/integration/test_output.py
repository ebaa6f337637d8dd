# SPDX-License-Identifier: Apache-2.0
"""Output commit: whatever anyone outside has seen of the guest, the standby's guest knows.

The oracle: the guest counts in its memory and sends the count, every millisecond, by UDP and TCP. Whoever has
received N has been told that the guest reached N; a guest that resumes from less was rolled back behind its
own word.
"""
import time

import clients
from understudy_test import check, wait_for

QUIET = "us.mem=8M us.rate=500 us.check=4000"


def counting(run, network="tap", interval="25ms", takeover="auto", **keys):
    return run.pair(machine="q35", memory=256, load=QUIET, services="counter", network=network, interval=interval,
                    takeover=takeover, **keys)


def observe(run, pair, values=300):
    observer = clients.Observer(run.outside().name).start()
    wait_for(f"{values} values by both ways", 30,
             lambda: observer.error or min(observer.highest.values()) > values, pair.story)
    return observer


def seen(observer):
    return max(observer.highest.values())


def kill_and_take_over(run, pair, observer):
    """(highest value seen before the takeover, what the standby resumed from)."""
    pair.wait_epochs(5)
    time.sleep(run.random.uniform(0.1, 0.6))
    return kill_now(pair, observer)


def kill_now(pair, observer):
    pair.kill_primary()
    time.sleep(0.1)  # what was let out has arrived; detection takes longer than this
    before = seen(observer)
    status = pair.wait_state("beta", "active")
    return before, status["probe"]["committed"]


def test_nothing_unknown_is_seen(run):
    """No value that was seen outside is unknown to the guest that resumes; the TCP stream goes on."""
    pair = counting(run).up()
    observer = observe(run, pair)
    status = pair.status("alpha")
    check(status["output"]["holding"] and status["output"]["gate"] != "none", f"not held: {status['output']}")
    before, committed = kill_and_take_over(run, pair, observer)
    check(before <= committed, f"{before} was seen, the standby resumed from {committed}", pair.story)
    wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 100,
             pair.story)
    check(not observer.error, f"the observer: {observer.error}", pair.story)
    check(run.outside().port_of_guest() == "beta", "the switch does not see the guest behind beta", pair.story)
    pair.check_taken_over()
    return (f"seen {before}, resumed {committed}; delay p50 {status['output']['delay_ms']['p50']:.1f} ms, gap "
            f"{observer.gap('tcp')[0] * 1000:.0f} ms")


def test_relay(run):
    """The same, where the engines carry the frames between QEMU's datagram sockets and the hosts' taps."""
    pair = counting(run, network="dgram")
    for host in "alpha", "beta":
        ends = [pair.devices.socket_path(host, end) for end in ("guest", "own")]
        pair.host_keys[host] = {"relay": f"{','.join(ends)}>tap0"}
    pair.up()
    observer = observe(run, pair)
    status = pair.status("alpha")
    check(status["output"]["holding"] and status["output"]["gate"] == "relay", f"not held: {status['output']}")
    before, committed = kill_and_take_over(run, pair, observer)
    check(before <= committed, f"{before} was seen, the standby resumed from {committed}", pair.story)
    wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 100,
             pair.story)
    check(not observer.error, f"the observer: {observer.error}", pair.story)
    pair.check_taken_over()
    return f"seen {before}, resumed {committed}"


def test_eager(run):
    """Output that waits ends the epoch: it is out long before the interval is over."""
    pair = counting(run, interval="2s", eager="yes").up()
    observer = observe(run, pair, values=100)
    status = pair.wait_epochs(20)
    check(status["output"]["holding"], f"not held: {status['output']}")
    check(status["output"]["delay_ms"]["p50"] < 1000, f"it waits as if for the interval: {status['output']}", pair.story)
    before, committed = kill_and_take_over(run, pair, observer)
    check(before <= committed, f"{before} was seen, the standby resumed from {committed}", pair.story)
    return f"delay p50 {status['output']['delay_ms']['p50']:.1f} ms at an interval of 2 s"


def test_engine_killed_leaves_the_gate_shut(run):
    """The primary's engine alone is killed: its guest runs on, and nothing it says gets out, until an engine is back."""
    pair = counting(run, takeover="manual").up()
    observer = observe(run, pair)
    pair.engines["alpha"].kill()
    time.sleep(0.3)
    before = seen(observer)
    pair.wait_ticks("alpha", 10)
    check(seen(observer) == before, f"{seen(observer)} got out after {before}, without an engine", pair.story)
    pair.protect("alpha")
    wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 100, pair.story)
    check(not observer.error, f"the observer: {observer.error}", pair.story)
    return f"shut at {before}"


def test_stop_lets_everything_out(run):
    """An engine that ends in order takes its gate with it."""
    pair = counting(run).up()
    observer = observe(run, pair)
    run.us("stop", pair.config("alpha"), "--host", "alpha")
    pair.engines["alpha"].wait(20)
    before = seen(observer)
    wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 100, pair.story)
    check(not observer.error, f"the observer: {observer.error}", pair.story)


def test_standby_lost(run):
    """continue without an arbiter: output is held for as long as the silence is none yet, then goes out; and is held
    again when the standby is back."""
    pair = counting(run, takeover="manual", arbiter="none", standby_loss="continue").up()
    observer = observe(run, pair)
    pair.engines["beta"].kill()
    before = seen(observer)
    wait_for("the stream goes on", 30, lambda: observer.error or min(observer.highest.values()) > before + 200, pair.story)
    status = pair.status("alpha")
    check(not status["output"]["holding"] and not status["protected"] and status["unprotected_s"] > 0,
          f"status: {status}", pair.story)
    pair.standby()
    pair.wait_protected("alpha")
    check(pair.wait_epochs(3)["output"]["holding"], "not held again", pair.story)
    check(not observer.error, f"the observer: {observer.error}", pair.story)


def test_without_a_gate_it_is_seen(run):
    """The oracle can fail: with the gate off, somebody outside knows more than the guest that resumes."""
    pair = counting(run, net_gate="none", interval="5s").up()
    observer = observe(run, pair)
    check(pair.status("alpha")["output"]["gate"] == "none", "there is a gate")
    pair.wait_epochs(1)
    known = seen(observer)
    wait_for("values that no checkpoint has", 4, lambda: seen(observer) > known + 20, pair.story, every=0.02)
    before, committed = kill_now(pair, observer)
    check(before > committed, f"{before} was seen, the standby resumed from {committed}: no roll-back to be seen",
          pair.story)
    return f"seen {before}, resumed {committed}"
