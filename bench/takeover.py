#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How long a takeover takes, again and again: `understudy bench takeover`.

Theory of operation

Two network namespaces play the hosts, a third is the world outside. A guest counts in its memory and sends the count every
millisecond, by datagram and over one TCP connection, to an observer outside; the bare guest, which is the one of our own VMM,
by datagram every five. It is protected, and at a random moment, drawn from a generator with a known seed, VMM and engine of
the primary are killed.

    kill ──► last heartbeat missed: decision ──► arbiter, apply, load, run ──► the guest runs ──► its next frame is seen
    │                                  └────────── decision to running ──────────┘
    └────────────────────────── kill to running ─────────────────────────────────┘
    last frame before ──────────────────────── gap, at the observer ──────────────────────────────────► first after

Decision to running is what the standby says of itself. Kill to running is by this machine's clock, when the standby's guest
ran. The gap is the longest time in which the observer received nothing by that way; it also holds what output commit held
before the kill. A kill counts only if nothing was seen outside that the guest does not know afterwards.
"""
import argparse
import os
import random
import shutil
import signal
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(SOURCE, "tests", "integration"), os.path.join(SOURCE, "bench")]
import clients  # noqa: E402
import figures  # noqa: E402
import frame  # noqa: E402
import kvm  # noqa: E402
from services import MAC, TAP  # noqa: E402
from understudy_test import check, wait_for  # noqa: E402

PARTS = ("detect", "arbitrate", "apply", "load", "run")
WAYS = {"udp": "datagrams", "tcp": "one TCP connection"}


def start_guest(run, options, number):
    keys = {"tag": f"kill{number}", "network": "tap", "takeover": "auto", "eager": "yes", "interval": f"{options.interval}ms",
            "detect": f"{options.detect}ms"}
    if options.vmm == "kvm":
        words = f"block=ram mem={options.load_mib}M rate={options.rate} check=100 write=line irq=0 tick=5 net=0xd0000000:5"
        return kvm.KvmPair(run, words=words, memory=(options.load_mib + 17) // 2 * 2, more=("--net", f"{TAP},{MAC}"),
                           **keys).start_guest()
    pair = run.pair(memory=256, services="counter", load=f"us.mem={options.load_mib}M us.rate={options.rate} us.check=4000", **keys)
    return pair.start_guest(ticks=1).wait_ready("counter")


def ways(options):
    """The bare guest speaks no TCP."""
    return ["udp"] if options.vmm == "kvm" else list(WAYS)


def observe(run, options, pair):
    observer = clients.Observer(run.outside().name, tcp="tcp" in ways(options)).start()
    wait_for("100 values by each way", 60, lambda: observer.error or all(observer.highest[way] > 100 for way in ways(options)),
             pair.story)
    observer.check()
    output = pair.status("alpha")["output"]
    check(output["holding"] and output["gate"] != "none", f"not held before the kill: {output}", pair.story)
    return observer


def gap_ms(observer, way, killed):
    """The longest silence by one way from shortly before the kill on."""
    return observer.gap(way, since=killed - 1.0)[0] * 1000


def kill_once(options, pair, observer, moment):
    """One takeover: what was measured of it."""
    time.sleep(moment)
    before = pair.status("alpha")
    killed = time.monotonic()
    for process in pair.qemu, pair.engines["alpha"]:
        process.signal(signal.SIGKILL)
    time.sleep(0.05)  # what was let out has arrived, and the standby has not decided yet (--detect is 100 ms at least)
    told_outside = max(observer.highest.values())
    status = wait_for("the takeover", 60, lambda: (lambda s: s and s["state"] == "active" and s)(pair.status("beta")), pair.story,
                      every=0.002)
    running = time.monotonic() - status["since_s"]
    seen = dict(observer.highest)
    wait_for("values from the standby's guest", 60,
             lambda: observer.error or all(observer.highest[way] > seen[way] + 100 for way in ways(options)), pair.story)
    observer.stop()
    check(not observer.went_back, f"seen before the kill, and again: {observer.went_back[:3]}", pair.story)
    committed = status["probe"]["committed"]
    check(not pair.serial("beta").corrupt(), f"the guest on beta: {pair.serial('beta').corrupt()}", pair.story)
    check(told_outside <= committed, f"{told_outside} was seen outside, the standby resumed from {committed}", pair.story)
    told = status["takeover_ms"]
    return {"moment_s": moment, "checkpoints_before": before["checkpoints"], "parts_ms": {name: told[name] for name in PARTS},
            "decision_to_running_ms": told["total"], "kill_to_running_ms": (running - killed) * 1000,
            "gap_ms": {way: gap_ms(observer, way, killed) for way in ways(options)}, "pause_ms": before["pause_ms"]}


def one_kill(run, options, number, moment):
    pair = start_guest(run, options, number)
    pair.standby()
    pair.protect()
    observer = observe(run, options, pair)
    try:
        found = kill_once(options, pair, observer, moment)
    finally:
        observer.ending.set()
    os.kill(pair.guest_pid("beta"), signal.SIGKILL)
    pair.engines["beta"].wait(20)
    return found


def measure(run, options, screen):
    draw, kills = random.Random(options.seed), []
    if options.vmm == "qemu":
        screen.say("the guest's images (made once)")
    for number in range(options.kills):
        found = one_kill(run, options, number, draw.uniform(0.1, 1.0))
        kills.append(found)
        screen.say(f"kill {number + 1} of {options.kills}: decision to running {found['decision_to_running_ms']:.1f} ms, kill to "
                   f"running {found['kill_to_running_ms']:.0f} ms, gap {found['gap_ms']['udp']:.0f} ms")
    return {"takeovers": kills}


def describe(result, own):
    kills = own["takeovers"]
    if result.document["options"]["vmm"] == "kvm":
        result.document["environment"]["accelerator"] = "kvm"

    def both(name, title, samples):
        result.figure(name, title, "ms", "lower", samples, "takeover")
        result.histogram(name, title, "ms", "lower", figures.histogram(samples))
    both("decision_to_running", "from the decision to the guest running", [kill["decision_to_running_ms"] for kill in kills])
    both("kill_to_running", "from the kill to the guest running", [kill["kill_to_running_ms"] for kill in kills])
    for way in kills[0]["gap_ms"]:
        both(f"gap_{way}", f"an observer's gap, {WAYS[way]}", [kill["gap_ms"][way] for kill in kills])
    for part in PARTS:
        result.figure(f"part_{part}", f"part: {part}", "ms", "lower", [kill["parts_ms"][part] for kill in kills], "parts")
    result.timeline("from the primary's last sign to the guest running", "ms", [
        (f"kill {number + 1}", [(part, kill["parts_ms"][part]) for part in PARTS]) for number, kill in enumerate(kills)])


def table(document):
    where, options = document["environment"], document["options"]
    guest = "bare guest in our own VMM" if options["vmm"] == "kvm" else f"Linux guest in QEMU, by {where['accelerator']}"
    found = [f"{guest}; detection after {options['detect']} ms of silence; moments from seed "
             f"{options['seed']}", "", f"  {'':<42}{'p50':>9}{'p90':>9}{'p99':>9}{'longest':>9}  {len(document['takeovers'])} kills"]
    for one in document["histograms"]:
        samples = next(figure["samples"] for figure in document["figures"] if figure["name"] == one["name"])
        found.append(f"  {one['title']:<42}{one['p50']:>9.1f}{one['p90']:>9.1f}{one['p99']:>9.1f}{one['max']:>9.1f}  "
                     f"{figures.sparkline(samples)}")
    return "\n".join(found + ["", "milliseconds; nothing that was seen outside was unknown to the guest afterwards"])


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench takeover", description=(
        "Boots a guest that counts aloud between two hosts, which are network namespaces of this machine, protects it, and kills "
        "VMM and engine of its primary at random moments, a fresh guest each time. Needs root and what "
        "tools/install-dependencies.sh installs."))
    parser.add_argument("--vmm", choices=("qemu", "kvm"), default="qemu",
                        help="QEMU with a Linux guest, or our own with the bare guest (default qemu)")
    parser.add_argument("--kills", type=frame.number(1, 1000), metavar="N", help="how often (default 10)")
    parser.add_argument("--detect", type=frame.number(100, 60000), default=250, metavar="MS",
                        help="silence after which the standby decides (default 250)")
    parser.add_argument("--interval", type=frame.number(1, 1000), default=25, metavar="MS",
                        help="time between checkpoints (default 25)")
    parser.add_argument("--load-mib", type=frame.number(1, 128), default=8, metavar="MIB",
                        help="memory that the guest rewrites (default 8)")
    parser.add_argument("--rate", type=frame.number(0, 1000000), default=500, metavar="N",
                        help="page writes of the guest a second (default 500)")
    parser.add_argument("--seed", type=frame.number(0, 2**31), default=1, metavar="N", help="of the moments (default 1)")
    parser.add_argument("--quick", action="store_true", help="two kills, unless said otherwise")
    frame.add_outputs(parser)
    frame.add_programs(parser)
    options = parser.parse_args(argv)
    options.kills = options.kills or (2 if options.quick else 10)
    return options


def main():
    options = parse_options(sys.argv[1:])
    wanted = ["ip", "bridge", "nsenter"] + ["qemu-system-x86_64"] * (options.vmm == "qemu")
    missing = [name for name in wanted if not shutil.which(name)]
    if options.vmm == "kvm":
        frame.need_kvm("takeover", options)
    keys = "vmm", "kills", "detect", "interval", "load_mib", "rate", "seed"
    return frame.run("takeover", options, keys, "network namespaces, bridges and taps", missing, measure, describe, table)


if __name__ == "__main__":
    frame.main("takeover", main)
