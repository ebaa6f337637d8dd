# SPDX-License-Identifier: Apache-2.0
"""Output commit in our own VMM: what is seen of its guest at its network and its console, the standby knows."""
import errno
import signal
import time

import clients
from kvm import WORDS, Control, KvmPair
from understudy_test import check, wait_for

TALKS = WORDS.replace("tick=100", "tick=5")  # so often that there is always a line that waits


def highest_tick(pair, host="alpha"):
    return max((counter for counter, _ in pair.serial(host).ticks()), default=0)


def on_network(run, **keys):
    return KvmPair(run, words=TALKS + " net=0xd0000000:5", more=("--net", "tap0", "--rng"), network="tap", **keys)


def check_in_order(pair, host="alpha"):
    ticks = [counter for counter, _ in pair.serial(host).ticks()]
    check(ticks == sorted(ticks), f"lines of the console on {host} are not in their order", pair.story)


def test_held(run):
    """Nobody outside has seen of the guest what the standby does not go on from, and it is heard at its new place."""
    pair = on_network(run, takeover="auto", interval="200ms").up()
    output = pair.status("alpha")["output"]
    check(output["holding"] and output["gate"] == "vmm", f"not held: {output}", pair.story)
    observer = clients.Observer(run.outside().name, tcp=False).start()
    wait_for("the counter is seen", 30, lambda: observer.error or observer.highest["udp"] > 100, pair.story)
    pair.wait_epochs(5)
    delay = pair.status("alpha")["output"]["delay_ms"]
    check(delay["p50"] > 0, f"nothing was held: {delay}", pair.story)
    pair.kill_primary()
    time.sleep(0.1)  # what was let out has arrived; detection takes longer than this
    seen, said = observer.highest["udp"], highest_tick(pair)
    pair.check_taken_over()
    committed = pair.status("beta")["probe"]["committed"]
    check(0 < said <= committed, f"the console said {said}, and the standby went on from {committed}", pair.story)
    check(seen <= committed, f"outside {seen} was seen, and the standby went on from {committed}", pair.story)
    check_in_order(pair)
    wait_for("the counter is seen again", 30, lambda: observer.error or observer.highest["udp"] > committed, pair.story)
    observer.stop()
    check(not observer.went_back, f"seen from outside the guest went back: {observer.went_back[:3]}", pair.story)
    return (f"{seen} seen and {said} read before, {committed} committed, {observer.highest['udp']} seen since; delay p50 "
            f"{delay['p50']:.1f} ms at an interval of 200 ms")


def test_engine_dies(run):
    """Without its engine nothing is heard of the guest. The next one lets out what was held, once it is acknowledged; or
    a person does."""
    pair = KvmPair(run, words=TALKS).up()
    pair.wait_epochs(5)
    for let_out in lambda: pair.protect("alpha"), lambda: pair.qemu.signal(signal.SIGUSR1):
        pair.engines["alpha"].kill()
        time.sleep(0.2)  # what was let out is written
        before = len(pair.serial("alpha").ticks())
        time.sleep(1)
        with Control(pair.path("alpha.vmm")) as visitor:
            check(visitor(Control.LOOK)[1] == Control.RUNNING, "the guest does not run without its engine", pair.story)
        check(len(pair.serial("alpha").ticks()) == before, "without an engine its console is heard", pair.story)
        let_out()
        wait_for("the console is heard", 20, lambda: len(pair.serial("alpha").ticks()) > before + 20, pair.story)
    check_in_order(pair)


def test_fails_open(run):
    """As it is configured: without its engine the guest's output passes, with what was held."""
    pair = KvmPair(run, words=TALKS, net_gate_failure="open", interval="1s").up()
    pair.wait_epochs(2)
    pair.engines["alpha"].kill()
    before = len(pair.serial("alpha").ticks())
    wait_for("the console is heard", 20, lambda: len(pair.serial("alpha").ticks()) > before + 20, pair.story)
    check_in_order(pair)


def test_bound(run):
    """Half the bound ends the epoch, however long it was to be."""
    pair = on_network(run, interval="60s", eager="no", net_gate_held="256KiB").up()
    status = wait_for("a checkpoint because of the bound", 50,
                      lambda: (pair.status("alpha") or {}).get("checkpoints", 0) >= 2 and pair.status("alpha"), pair.story)
    output = status["output"]
    check(output["frames_out"] > 0 and output["dropped"] == 0, f"dropped at half the bound: {output}", pair.story)
    return f"held at most {output['held_bytes_peak']} bytes"


def test_eager(run):
    """Output that waits ends the epoch."""
    pair = KvmPair(run, interval="60s", eager="yes").up()
    wait_for("checkpoints because of output", 60, lambda: (pair.status("alpha") or {}).get("checkpoints", 0) >= 5, pair.story)


def test_by_hand(run):
    """What a gate may ask, in the states in which a guest of a loser and of a dead engine is."""
    pair = KvmPair(run, words=TALKS).start_guest()
    path = pair.path("alpha.vmm")

    def heard(seconds=0.5):
        time.sleep(0.2)  # what was let out is written
        before = len(pair.serial("alpha").ticks())
        time.sleep(seconds)
        return len(pair.serial("alpha").ticks()) > before

    with Control(path) as engine, Control(path) as gate:
        check(engine.greet()[0] == 0 and engine(Control.TRACK)[0] == 0, "no engine, and HELLO is refused")
        check(gate(Control.GATE_HOLD)[0] == -errno.EPERM, "held by a visitor")
        check(engine(Control.PAUSE)[0] == 0 and engine.line == 0, "a line behind what is not held")
        engine(Control.RESUME)
        check(gate(Control.GATE)[0] == 0 and heard(), "who opens the gate closes it")
        check(engine(Control.GATE)[0] == -errno.EBUSY, "two gates")
        check(gate(Control.GATE_HOLD)[0] == 0 and not heard(), "not held")
        check((Control.GATE_EVENT, 1) in gate.events or gate(Control.LOOK)[0] == 0 and gate.events, "waits, and it is not told")
        check(engine(Control.PAUSE)[0] == 0 and engine.line > 0, "no line behind what is held")
        before, line = len(pair.serial("alpha").ticks()), engine.line
        engine(Control.RESUME)
        check(not heard(), "a line lets out")
        check(gate(Control.GATE_RELEASE, line)[0] == 0, "not released")
        wait_for("what was released", 10, lambda: len(pair.serial("alpha").ticks()) > before, pair.story)
        check(not heard(), "what came behind the line is let out")
        check(gate(Control.GATE_SHUT)[0] == 0 and gate(Control.GATE_HOLD)[0] == -errno.ESHUTDOWN, "not shut")
    check(not heard(), "who shut it is gone, and it opens")
    with Control(path) as gate:
        check(gate(Control.GATE, Control.GATE_HOLDS)[0] == 0 and not heard(), "it opens for an engine that holds")
        check(gate(Control.GATE_PASS)[0] == 0 and heard(), "it does not pass")
    check(heard(), "it passed, and is held by nobody")
    check_in_order(pair)
