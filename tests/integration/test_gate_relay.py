# SPDX-License-Identifier: Apache-2.0
"""The gate that carries the frames itself, for a dgram socket and for a tap. The place and its rules are in gates.py."""
import os
import select
import threading
import time

from frames import frame_ipv4, frame_arp, numbers
from gates import (Socket, Gate, Place, relay_dgram, relay_tap, holds_in_order, holds_kind, holds_large,
                   keeps_the_bound, shuts, QUIET, KINDS, OTHER_KINDS)
from understudy_test import check, wait_for


def relay_holds_every_kind(place, guest, gate):
    epoch = 1
    for name, build in {**KINDS, **OTHER_KINDS}.items():
        holds_kind(place, guest, gate, name, build, epoch)
        epoch += 2
    return epoch


def relay_dies(run, place, guest, gate, *port):
    gate.mark(1)
    for number in range(5):
        guest.send(frame_ipv4(number))
    gate.wait_held(5)
    gate.die()
    place.out.nothing("killed")
    again = Gate(run, "relay", *port)
    check(again.opened == "open relay", again.opened)
    place.out.nothing("opened again")
    guest.send(frame_ipv4(20))
    check(numbers(place.out.take(1)) == [20], "opened again: it passes")
    place.send_in(30)
    check(numbers([guest.next() or b""]) == [30], "opened again: the way in")
    again.mark(1)
    guest.send(frame_ipv4(21))
    place.out.nothing("holding again")
    again.close()
    place.out.nothing("closed while it held")


def moves_many(place, guest, gate):
    """More than any queue on the way takes at once, both ways, in order."""
    count = 20000
    got = []
    reader = threading.Thread(target=lambda: got.extend(place.out.take(count)))
    reader.start()
    for number in range(count):
        guest.send(frame_ipv4(number, size=600))
        if number % 64 == 0:
            time.sleep(0.001)
    reader.join()
    check(numbers(got) == list(range(count)), "frames were lost, or came in another order")
    stats = gate.stats()
    check(stats["frames_out"] >= count and stats["dropped"] == 0, f"figures: {stats}")


def test_dgram_holds_in_order(run):
    holds_in_order(*relay_dgram(run))


def test_dgram_holds_every_kind(run):
    relay_holds_every_kind(*relay_dgram(run))


def test_dgram_keeps_the_bound(run):
    place, guest, gate = relay_dgram(run, bound=1 << 20)
    keeps_the_bound(place, guest, gate, 1 << 20)


def test_dgram_shuts(run):
    shuts(*relay_dgram(run))


def test_dgram_dies(run):
    place, guest, gate = relay_dgram(run)
    busy = Gate(run, "relay", f"tap0,from={guest.own},to={guest.peer}")
    check("another program" in busy.opened, busy.opened)
    relay_dies(run, place, guest, gate, f"tap0,from={guest.own},to={guest.peer}")


def test_dgram_outlives_qemu(run):
    """QEMU ends and another one comes; and one that does not read loses frames but stops nothing."""
    place, guest, gate = relay_dgram(run)
    place.send_in(1)
    check(numbers([guest.next() or b""]) == [1], "the way in")
    for number in range(2000):
        place.send_in(number)
    guest.send(frame_ipv4(7))
    check(numbers(place.out.take(1)) == [7], "the way out, while the way in is full")
    guest.socket.close()
    os.unlink(guest.own)
    place.send_in(2)
    time.sleep(0.1)
    guest = Socket(run.directory)
    wait_for("frames reach the new QEMU", 5, lambda: place.send_in(3) or guest.next(0.1))
    guest.send(frame_ipv4(8))
    check(numbers(place.out.take(1)) == [8], "the way out of the new QEMU")


def test_dgram_moves_many(run):
    moves_many(*relay_dgram(run))


def test_tap_holds_in_order(run):
    holds_in_order(*relay_tap(run))


def test_tap_holds_every_kind(run):
    place, guest, gate = relay_tap(run)
    epoch = relay_holds_every_kind(place, guest, gate)
    holds_large(place, guest, gate, epoch)


def test_tap_keeps_the_bound(run):
    place, guest, gate = relay_tap(run, bound=1 << 20)
    keeps_the_bound(place, guest, gate, 1 << 20)


def test_tap_shuts(run):
    shuts(*relay_tap(run))


def test_tap_dies(run):
    place, guest, gate = relay_tap(run)
    relay_dies(run, place, guest, gate, "tap0,guest=qemu0")


def test_tap_moves_many(run):
    moves_many(*relay_tap(run))


def test_tap_hides_the_guest_from_the_host(run):
    """The host has an address that the guest asks for: it must answer neither at once nor twice."""
    place, guest, gate = relay_tap(run)
    place.ip("address", "add", "10.9.0.3/24", "dev", "lo")
    gate.mark(1)
    guest.send(frame_arp(1, target=b"\xff" * 6))
    deadline = time.monotonic() + QUIET
    while select.select([guest.fd], [], [], max(0, deadline - time.monotonic()))[0]:
        data = os.read(guest.fd, 70000)[10:]
        check(data[12:14] != b"\x08\x06", "the host answered a held question")
    place.out.nothing("a held question")


def test_tap_reports_a_lost_tap(run):
    place, guest, gate = relay_tap(run)
    gate.mark(1)
    os.close(guest.fd)
    gate.event("failed")
    gate.order("mark 2", "error")
    gate.order("release 1", "error")


def test_tap_refuses_a_bridged_tap(run):
    place = Place(run)
    place.tap("qemu0")
    gate = Gate(run, "relay", "tap0,guest=qemu0")
    check("port of a bridge" in gate.opened, gate.opened)
