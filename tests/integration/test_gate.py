# SPDX-License-Identifier: Apache-2.0
"""The gate by netfilter's queue, and which kind `auto` takes. The place and its rules are in gates.py."""
import errno
import os
import socket
import threading
import time

from frames import label, ethernet, ipv4, udp, frame_ipv4, frame_ipv6, frame_arp, frame_other, numbers
from gates import (Gate, Place, nfqueue, holds_in_order, holds_kind, holds_large, keeps_the_bound, shuts, QUIET, KINDS,
                   OTHER_KINDS)
from understudy_test import check


def test_nfqueue_holds_in_order(run):
    place, guest, gate = nfqueue(run)
    holds_in_order(place, guest, gate)
    gate.order("pass")
    gate.close()
    guest.send(frame_ipv4(900))
    check(numbers(place.out.take(1)) == [900], "a closed gate is in the way")
    for program in "iptables-save", "ip6tables-save":
        check("understudy" not in run.command(program)[0], f"rules were left in {program}")
    check("tap0" not in run.command("nft", "list", "ruleset")[0], "nft's rules were left")


def test_nfqueue_holds_every_kind(run):
    place, guest, gate = nfqueue(run)
    epoch = 1
    for name, build in KINDS.items():
        holds_kind(place, guest, gate, name, build, epoch)
        epoch += 2
    holds_large(place, guest, gate, epoch)
    if place.nft_has_queue():
        for name, build in OTHER_KINDS.items():
            epoch += 2
            holds_kind(place, guest, gate, name, build, epoch)
        return "by nft's queue"
    # As gate/rules.c has it: ARP passes, what is no IP at all is dropped as long as the gate holds.
    for number, (name, build) in enumerate(OTHER_KINDS.items(), 5000):
        guest.send(build(number))
        if name.startswith("ARP"):
            check(numbers(place.out.take(1)) == [number], f"{name} does not pass")
        else:
            place.out.nothing(f"{name}, holding")
    gate.order("pass")
    for number, (name, build) in enumerate(OTHER_KINDS.items(), 6000):
        guest.send(build(number))
        check(numbers(place.out.take(1)) == [number], f"{name} does not pass a passing gate")
    return "by iptables"


def test_nfqueue_holds_what_is_for_the_host(run):
    place, guest, gate = nfqueue(run)
    place.ip("address", "add", "10.9.0.1/24", "dev", "br0")
    with open("/sys/class/net/br0/address") if os.path.exists("/sys/class/net/br0/address") else os.popen(
            "ip -o link show br0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'") as file:
        mac = bytes.fromhex(file.read().strip().replace(":", ""))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("10.9.0.1", 7000))
    server.settimeout(QUIET)

    def send(number):
        guest.send(ethernet(0x0800, ipv4(udp(label(number), port=7000), target="10.9.0.1"), target=mac))

    send(1)
    check(numbers([server.recv(2000)]) == [1], "a passing gate")
    gate.mark(1)
    send(2)
    gate.wait_held(1)
    try:
        raise AssertionError(f"the host itself saw a held frame: {server.recv(2000)}")
    except socket.timeout:
        pass
    gate.mark(2)
    gate.release(2)
    check(numbers([server.recv(2000)]) == [2], "released to the host")


def test_nfqueue_keeps_the_bound(run):
    place, guest, gate = nfqueue(run, bound=1 << 20)
    keeps_the_bound(place, guest, gate, 1 << 20)


def test_nfqueue_shuts(run):
    place, guest, gate = nfqueue(run)
    shuts(place, guest, gate)
    gate.close()
    guest.send(frame_ipv4(9))
    guest.send(frame_arp(9))
    place.out.nothing("shut and closed")


def test_nfqueue_killed_fails_closed(run):
    """Nothing gets out while no engine is there, and nothing of what was held when the next one opens."""
    place, guest, gate = nfqueue(run)
    gate.mark(1)
    for number in range(1, 6):
        guest.send(frame_ipv4(number))
    gate.wait_held(5)
    gate.die()
    for number in range(10, 15):
        guest.send(frame_ipv4(number))
        guest.send(frame_other(number))
    place.out.nothing("killed")
    again = Gate(run, "nfqueue", "tap0")
    check(again.opened == "open nfqueue", again.opened)
    place.out.nothing("opened again")
    guest.send(frame_ipv4(20))
    guest.send(frame_other(21))
    check(sorted(numbers(place.out.take(2))) == [20, 21], "opened again: it passes")
    rules = run.command("iptables-save", "-t", "raw")[0].count("understudy:tap0")
    check(rules <= 1, f"{rules} rules for one tap")
    again.mark(1)
    guest.send(frame_ipv4(30))
    place.out.nothing("holding again")
    again.order("pass")
    check(numbers(place.out.take(1)) == [30], "pass")
    again.close()
    guest.send(frame_ipv4(40))
    check(numbers(place.out.take(1)) == [40], "closed")


def test_nfqueue_reopened_leaks_nothing(run):
    """A guest that never stops sending, engines killed and started: each frame that gets out was sent while a gate
    was passing."""
    place, guest, gate = nfqueue(run)
    stop, number = threading.Event(), [0]

    def send():
        while not stop.is_set():
            number[0] += 1
            guest.send(frame_ipv4(number[0]))
            time.sleep(0.0005)

    sender = threading.Thread(target=send)
    sender.start()
    windows = []
    try:
        for _ in range(4):
            gate.mark(1)
            first = number[0] + 1  # the one under way may be of either side
            time.sleep(0.1)
            gate.die()
            time.sleep(0.1)
            windows.append((first + 1, number[0] - 1))
            gate = Gate(run, "nfqueue", "tap0")
            check(gate.opened == "open nfqueue", gate.opened)
            time.sleep(0.05)
    finally:
        stop.set()
        sender.join()
    time.sleep(QUIET)
    seen = set()
    while (frame := place.out.next(QUIET)) is not None:
        seen.update(numbers([frame]))
    for first, last in windows:
        leaked = [n for n in seen if first <= n <= last]
        check(last > first, f"nothing was tried: {first} to {last}")
        check(not leaked, f"frames sent while it held got out: {leaked[:10]}")
    check(seen, "nothing at all came out")


def test_nfqueue_killed_fails_open(run):
    place, guest, gate = nfqueue(run, failure="open")
    gate.mark(1)
    guest.send(frame_ipv4(1))
    gate.wait_held(1)
    place.out.nothing("holding")
    gate.die()
    place.out.nothing("what was held is lost")
    for number in range(10, 15):
        guest.send(frame_ipv4(number))
        guest.send(frame_ipv6(number + 10))
    check(sorted(numbers(place.out.take(10))) == [*range(10, 15), *range(20, 25)], "failed open")


def test_nfqueue_closed_while_it_holds(run):
    place, guest, gate = nfqueue(run)
    gate.mark(1)
    guest.send(frame_ipv4(1))
    gate.wait_held(1)
    gate.close()
    guest.send(frame_ipv4(2))
    place.out.nothing("closed while it held")


def test_nfqueue_two_taps(run):
    """One gate, one order; a second gate on the same bridge minds its own tap."""
    place = Place(run)
    guests = [place.tap(f"tap{number}") for number in range(3)]
    gate = Gate(run, "nfqueue", "tap0", "tap1")
    other = Gate(run, "nfqueue", "tap2")
    check((gate.opened, other.opened) == ("open nfqueue", "open nfqueue"), f"{gate.opened} {other.opened}")
    gate.mark(1)
    for number in range(10):
        guests[number % 2].send(frame_ipv4(number))
    guests[2].send(frame_ipv4(50))
    check(numbers(place.out.take(1)) == [50], "the other guest is held, too")
    gate.wait_held(10)
    other.mark(7)
    guests[2].send(frame_ipv4(51))
    gate.mark(2)
    gate.release(2)
    check(numbers(place.out.take(10)) == list(range(10)), "two taps, one order")
    place.out.nothing("the other gate holds")
    gate.order("pass")
    gate.close()
    place.out.nothing("the other gate holds on")
    other.order("pass")
    check(numbers(place.out.take(1)) == [51], "the other gate passes")


def test_nfqueue_dead_neighbour_stays_closed(run):
    """A dead engine's rules name a queue; another's must not take it and let out what comes."""
    place = Place(run)
    guests = [place.tap("tap0"), place.tap("tap1")]
    gate = Gate(run, "nfqueue", "tap0")
    gate.mark(1)
    number = 0
    with open("/proc/thread-self/net/netfilter/nfnetlink_queue") as file:
        number = int(file.read().split()[0])
    gate.die()
    # Rules of tap1 that name the queue which the next engine for tap0 takes.
    run.command("iptables", "-t", "raw", "-I", "PREROUTING", "-m", "physdev", "--physdev-in", "tap1", "-j", "NFQUEUE",
                "--queue-num", str(number))
    again = Gate(run, "nfqueue", "tap0")
    with open("/proc/thread-self/net/netfilter/nfnetlink_queue") as file:
        check(int(file.read().split()[0]) == number, "the number is not the same: nothing is tested")
    guests[1].send(frame_ipv4(1))
    guests[0].send(frame_ipv4(2))
    check(numbers(place.out.take(1)) == [2], "a strange tap's frame passed")
    place.out.nothing("a strange tap's frame")
    again.order("pass")


def test_nfqueue_refuses_what_it_cannot_hold(run):
    place = Place(run)
    place.tap("tap0", bridge=False)
    gate = Gate(run, "nfqueue", "tap0")
    check(gate.opened.startswith(f"refused {errno.EOPNOTSUPP}") and "no port of a Linux bridge" in gate.opened,
          gate.opened)
    gate = Gate(run, "nfqueue", "tap7")
    check(gate.opened.startswith(f"refused {errno.ENODEV}") and "tap7" in gate.opened, gate.opened)


def test_auto_takes_what_there_is(run):
    place = Place(run)
    guest = place.tap("tap0")
    gate = Gate(run, "auto", "tap0")
    check(gate.opened in ("open nfqueue", "open plug"), gate.opened)
    gate.mark(1)
    guest.send(frame_ipv4(1))
    place.out.nothing("holding")
    none = Gate(run, "auto")
    check(none.opened == "open none", none.opened)
    return gate.opened.split()[1]


def test_taps_of_a_process(run):
    place = Place(run)
    place.tap("tap0")
    place.tap("tap1", bridge=False)
    tool = os.path.join(run.build, "tests/integration/gate/gate-tool")
    found = run.command(tool, "taps", str(os.getpid()))[0].split()
    check(sorted(found) == ["tap0", "tap1"], f"found {found}")
