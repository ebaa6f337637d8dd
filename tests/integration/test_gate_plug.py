# SPDX-License-Identifier: Apache-2.0
"""The gate by sch_plug. The place and its rules are in gates.py."""
import errno

from frames import frame_ipv4, numbers
from gates import Gate, Place, holds_kind, holds_large, shuts, KINDS, OTHER_KINDS
from understudy_test import Skip, check


def plug(run, **options):
    place = Place(run)
    guest = place.tap("tap0")
    gate = Gate(run, "plug", "tap0", **options)
    if gate.opened.startswith(f"refused {errno.EOPNOTSUPP}"):
        check("CONFIG_NET_SCH_PLUG" in gate.opened or "matchall" in gate.opened, gate.opened)
        guest.send(frame_ipv4(1))
        check(numbers(place.out.take(1)) == [1], "a refused gate is in the way")
        raise Skip(gate.opened.split(" ", 2)[2])
    check(gate.opened == "open plug", gate.opened)
    return place, guest, gate


def test_holds_in_order(run):
    place, guest, gate = plug(run)
    guest.send(frame_ipv4(1))
    check(numbers(place.out.take(1)) == [1], "a passing gate did not pass")
    gate.mark(1)
    for number in range(10, 15):
        guest.send(frame_ipv4(number))
    gate.event("waiting")
    place.out.nothing("holding")
    gate.release(1)
    place.out.nothing("release of an epoch without frames")
    gate.mark(2)
    for number in range(20, 23):
        guest.send(frame_ipv4(number))
    gate.mark(3)  # while a plug is in: its frames go with a later epoch
    gate.release(2)
    check(numbers(place.out.take(5)) == list(range(10, 15)), "epoch 2")
    gate.release(3)
    place.out.nothing("epoch 3 has no plug of its own")
    gate.mark(4)
    gate.release(4)
    check(numbers(place.out.take(3)) == list(range(20, 23)), "epoch 4")
    guest.send(frame_ipv4(30))
    place.out.nothing("the open epoch")
    gate.order("pass")
    check(numbers(place.out.take(1)) == [30], "pass")
    gate.close()
    guest.send(frame_ipv4(31))
    check(numbers(place.out.take(1)) == [31], "closed")


def test_holds_every_kind(run):
    place, guest, gate = plug(run)
    epoch = 1
    for name, build in {**KINDS, **OTHER_KINDS}.items():
        holds_kind(place, guest, gate, name, build, epoch)
        epoch += 2
    holds_large(place, guest, gate, epoch)


def test_keeps_the_bound(run):
    place, guest, gate = plug(run, bound=1 << 20)
    gate.mark(1)
    sent = 1400
    for number in range(sent):
        guest.send(frame_ipv4(number, size=1000))
    gate.event("waiting")
    gate.event("full")
    stats = gate.stats()
    check(0 < stats["held_bytes"] <= 1 << 20 and stats["dropped"] > 0, f"figures: {stats}")
    check(stats["held_frames"] + stats["dropped"] == sent, f"{sent} sent: {stats}")
    gate.mark(2)
    gate.release(2)
    check(numbers(place.out.take(stats["held_frames"])) == list(range(stats["held_frames"])), "the first ones")
    place.out.nothing("what was dropped")


def test_shuts(run):
    shuts(*plug(run))


def test_killed_fails_closed(run):
    place, guest, gate = plug(run)
    gate.mark(1)
    guest.send(frame_ipv4(1))
    gate.wait_held(1)
    gate.die()
    guest.send(frame_ipv4(2))
    place.out.nothing("killed")
    again = Gate(run, "plug", "tap0")
    check(again.opened == "open plug", again.opened)
    place.out.nothing("opened again")
    guest.send(frame_ipv4(3))
    check(numbers(place.out.take(1)) == [3], "opened again: it passes")
