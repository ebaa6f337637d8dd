# SPDX-License-Identifier: Apache-2.0
"""The network gate with real frames: a tap that the test holds in a guest's place, a bridge, an observer on it, and what
every kind of gate must do there.

gate-tool (tests/integration/gate) opens the gate and obeys lines; so it can be killed like an engine.
"""
import fcntl
import json
import os
import queue
import select
import socket
import struct
import subprocess
import threading
import time

import processes
from frames import frame_ipv4, frame_ipv6, frame_arp, frame_other, frame_large, numbers, GUEST_MAC, OTHER_MAC, MAGIC
from understudy_test import check, wait_for

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
TUNSETVNETHDRSZ = 0x400454D8
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, ETH_P_ALL = 263, 8, 15, 3
QUIET = 0.25  # how long nothing must come to say that nothing comes


class Listener:
    """Every labelled frame that comes in by an interface, with its VLAN tag where the guest put it."""

    def __init__(self, interface):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.bind((interface, ETH_P_ALL))

    def next(self, seconds):
        deadline = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0, deadline - time.monotonic()))[0]:
            data, extra, _, address = self.socket.recvmsg(70000, 256)
            if address[2] == socket.PACKET_OUTGOING or MAGIC not in data:
                continue
            for level, kind, value in extra:
                status, _, _, _, _, tag, tag_type = struct.unpack("IIIHHHH", value[:20])
                if (level, kind) == (SOL_PACKET, PACKET_AUXDATA) and status & 0x10:
                    data = data[:12] + struct.pack("!HH", tag_type, tag) + data[12:]
            return data
        return None

    def take(self, count, seconds=5):
        found = []
        while len(found) < count:
            frame = self.next(seconds)
            if frame is None:
                raise AssertionError(f"{len(found)} of {count} frames came: {numbers(found)}")
            found.append(frame)
        return found

    def nothing(self, what, seconds=QUIET):
        frame = self.next(seconds)
        check(frame is None, f"{what}: a frame got out: {frame and numbers([frame])}")


class Tap:
    """What QEMU has of a tap."""

    def __init__(self, name):
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", 10))

    def send(self, frame, header=bytes(10)):
        os.write(self.fd, header + frame)

    def next(self, seconds=5):
        deadline = time.monotonic() + seconds
        while select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
            data = os.read(self.fd, 70000)[10:]
            if MAGIC in data:
                return data
        return None


class Socket:
    """QEMU's end of -netdev dgram."""

    def __init__(self, directory):
        self.own, self.peer = os.path.join(directory, "qemu.sock"), os.path.join(directory, "engine.sock")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.own)
        self.socket.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)  # SO_SNDBUFFORCE
        self.socket.settimeout(5)

    def send(self, frame):
        self.socket.sendto(frame, self.peer)

    def next(self, seconds=5):
        deadline = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0, deadline - time.monotonic()))[0]:
            data = self.socket.recv(70000)
            if MAGIC in data:
                return data
        return None


class Gate:
    """gate-tool, running."""

    def __init__(self, run, kind, *ports, failure="closed", bound=8 << 20):
        self.log = open(os.path.join(run.logs, "gate-tool.log"), "ab")
        self.popen = subprocess.Popen(
            [os.path.join(run.build, "tests/integration/gate/gate-tool"), kind, failure, str(bound), *ports],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)
        self.answers, self.events = queue.Queue(), queue.Queue()
        threading.Thread(target=self.read, args=(run,), daemon=True).start()
        self.opened = self.answers.get(timeout=30)

    def read(self, run):
        for line in self.popen.stdout:
            run.log(f"gate: {line.rstrip()}")
            (self.events if line.startswith("event ") else self.answers).put(line.strip())
        self.answers.put("gone")

    def order(self, text, expect="ok"):
        self.popen.stdin.write(text + "\n")
        answer = self.answers.get(timeout=30)
        check(answer.startswith(expect), f"gate: {text}: {answer}")
        return answer

    def mark(self, epoch):
        self.order(f"mark {epoch}")

    def release(self, epoch):
        self.order(f"release {epoch}")

    def stats(self):
        return json.loads(self.order("stats", "{"))

    def wait_held(self, frames):
        return wait_for(f"{frames} held frames", 5, lambda: self.stats()["held_frames"] == frames and self.stats(),
                        lambda: str(self.stats()))

    def event(self, name, seconds=5):
        try:
            found = self.events.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no event {name} within {seconds} s")
        check(found.startswith(f"event {name}"), f"event {name} expected: {found}")

    def no_event(self):
        try:
            raise AssertionError(f"an event too many: {self.events.get(timeout=QUIET)}")
        except queue.Empty:
            pass

    def die(self):
        self.popen.kill()
        self.popen.wait(10)

    def close(self):
        self.order("close", "closed")
        check(self.popen.wait(10) == 0, f"gate-tool ended with {self.popen.returncode}")


class Place:
    """A network namespace of the test's own: bridge br0, and behind it the observer."""

    def __init__(self, run, mtu=9000):
        self.run = run
        processes.enter_network(run.lone_network())  # this thread, and what it starts
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.ip("link", "add", "port", "type", "veth", "peer", "name", "observer")
        for name in "port", "observer":
            self.ip("link", "set", name, "mtu", str(mtu), "up")
        self.ip("link", "set", "port", "master", "br0")
        self.ip("link", "set", "br0", "mtu", str(mtu), "up")
        self.mtu = mtu
        self.out = Listener("observer")
        self.sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.sender.bind(("observer", ETH_P_ALL))

    def ip(self, *argv):
        return self.run.command("ip", *argv)

    def tap(self, name, bridge=True):
        tap = Tap(name)
        self.ip("link", "set", name, "mtu", str(self.mtu), "up")
        if bridge:
            self.ip("link", "set", name, "master", "br0")
        return tap

    def outside_tap(self, name, vnet):
        """A persistent tap on the bridge for the relay."""
        self.ip("tuntap", "add", name, "mode", "tap", *(["vnet_hdr"] if vnet else []))
        self.ip("link", "set", name, "mtu", str(self.mtu), "master", "br0", "up")

    def wait_forwarding(self, *names):
        """A port forwards some time after its carrier is up; the kernel tells the bridge when it finds the time."""
        def forwards(name):
            return any(port.get("state") == "forwarding"
                       for port in json.loads(self.run.command("bridge", "-j", "link", "show", "dev", name)[0] or "[]"))
        for name in "port", *names:
            wait_for(f"{name} forwards", 10, lambda: forwards(name))

    def send_in(self, number):
        self.sender.send(frame_ipv4(number, source=OTHER_MAC, target=GUEST_MAC))

    def nft_has_queue(self):
        script = "table bridge probe { chain c { type filter hook prerouting priority 0; queue num 1; }; }"
        done = subprocess.run(["nft", "-c", "-f", "-"], input=script, text=True, capture_output=True)
        return done.returncode == 0


def nfqueue(run, failure="closed", **options):
    place = Place(run)
    guest = place.tap("tap0")
    gate = Gate(run, "nfqueue", "tap0", failure=failure, **options)
    check(gate.opened == "open nfqueue", gate.opened)
    place.wait_forwarding("tap0")
    return place, guest, gate


def relay_dgram(run, **options):
    place = Place(run)
    place.outside_tap("tap0", vnet=False)
    guest = Socket(run.directory)
    gate = Gate(run, "relay", f"tap0,from={guest.own},to={guest.peer}", **options)
    check(gate.opened == "open relay", gate.opened)
    place.wait_forwarding("tap0")
    return place, guest, gate


def relay_tap(run, **options):
    place = Place(run)
    place.outside_tap("tap0", vnet=True)
    guest = place.tap("qemu0", bridge=False)
    gate = Gate(run, "relay", "tap0,guest=qemu0", **options)
    check(gate.opened == "open relay", gate.opened)
    place.wait_forwarding("tap0")
    return place, guest, gate


# -- what every gate does -------------------------------------------------------------------------------------
def holds_in_order(place, guest, gate):
    """Passing at once; epochs released one by one; the way in open; pass."""
    guest.send(frame_ipv4(1))
    check(numbers(place.out.take(1)) == [1], "a passing gate did not pass")
    gate.mark(10)
    gate.no_event()
    for number in range(100, 120):
        guest.send(frame_ipv4(number))
    gate.event("waiting")
    place.out.nothing("holding")
    gate.mark(11)
    gate.no_event()
    for number in range(200, 205):
        guest.send(frame_ipv4(number))
    gate.event("waiting")
    gate.mark(12)
    for number in range(300, 303):
        guest.send(frame_ipv4(number))
    gate.release(10)
    place.out.nothing("release of an epoch without frames")
    place.send_in(5)
    check(numbers([guest.next() or b""]) == [5], "a frame to the guest was held")
    held = gate.wait_held(28)
    check(held["holding"], "it does not say that it holds")
    gate.release(11)
    check(numbers(place.out.take(20)) == list(range(100, 120)), "epoch 11: other frames, or another order")
    place.out.nothing("epoch 12 is not released")
    gate.mark(12)  # again: its capture failed
    gate.release(12)
    check(numbers(place.out.take(8)) == [*range(200, 205), *range(300, 303)], "epoch 12, marked twice")
    stats = gate.wait_held(0)
    check(stats["delays"] >= 28 and stats["delay_p50_us"] >= QUIET * 1e6, f"delays: {stats}")
    check(stats["dropped"] == 0 and stats["frames_out"] >= 29, f"figures: {stats}")
    guest.send(frame_ipv4(400))
    place.out.nothing("the open epoch")
    gate.order("pass")
    check(numbers(place.out.take(1)) == [400], "pass")
    guest.send(frame_ipv4(401))
    check(numbers(place.out.take(1)) == [401], "after pass")
    gate.order("pass")
    gate.mark(1)  # another standby counts anew
    guest.send(frame_ipv4(402))
    place.out.nothing("holding again")
    gate.mark(2)
    gate.release(2)
    check(numbers(place.out.take(1)) == [402], "released again")
    gate.order("mark 1", "error 22")


def holds_kind(place, guest, gate, name, build, epoch):
    """One kind of frame: held, and then the very bytes."""
    gate.mark(epoch)
    gate.release(epoch)
    frames = [build(number) for number in range(epoch * 100, epoch * 100 + 5)]
    for frame in frames:
        guest.send(frame)
    place.out.nothing(f"{name}: held")
    gate.mark(epoch + 1)
    gate.release(epoch + 1)
    check(place.out.take(5) == frames, f"{name}: frames were changed")


def holds_large(place, guest, gate, epoch):
    gate.mark(epoch)
    gate.release(epoch)
    header, frame = frame_large(epoch * 100)
    for _ in range(3):
        guest.send(frame, header)
    place.out.nothing("a large frame: held")
    gate.mark(epoch + 1)
    gate.release(epoch + 1)
    for found in place.out.take(3):
        check(len(found) == len(frame) and found[54:] == frame[54:],
              f"a frame of {len(frame)} bytes came as {len(found)}: it was cut")


KINDS = {
    "IPv4": frame_ipv4,
    "IPv6": frame_ipv6,
    "IPv4 with a VLAN tag": lambda number: frame_ipv4(number, tags=[0x0064]),
    "IPv6 with a VLAN tag": lambda number: frame_ipv6(number, tags=[0x6065]),
    "jumbo IPv4": lambda number: frame_ipv4(number, size=8900),
    "jumbo IPv6": lambda number: frame_ipv6(number, size=8900),
    "jumbo with a VLAN tag": lambda number: frame_ipv4(number, size=8900, tags=[100]),
}
OTHER_KINDS = {
    "ARP": frame_arp,
    "ARP with a VLAN tag": lambda number: frame_arp(number, tags=[100]),
    "two VLAN tags": lambda number: frame_ipv4(number, tags=[100, 200]),
    "another protocol": frame_other,
    "another protocol with a VLAN tag": lambda number: frame_other(number, tags=[100]),
}


def keeps_the_bound(place, guest, gate, bound):
    gate.mark(1)
    sent = 0
    while sent * 1000 < 2 * bound:
        guest.send(frame_ipv4(1000 + sent, size=1000))
        sent += 1
    gate.event("waiting")
    gate.event("full")
    gate.no_event()
    stats = wait_for("every frame counted", 5,
                     lambda: gate.stats()["held_frames"] + gate.stats()["dropped"] == sent and gate.stats(),
                     lambda: f"{sent} sent: {gate.stats()}")
    check(bound * 0.9 < stats["held_bytes"] <= bound, f"held of {bound}: {stats}")
    check(stats["held_bytes_peak"] <= bound, f"peak: {stats}")
    place.out.nothing("over the bound")
    gate.mark(2)
    gate.release(2)
    found = numbers(place.out.take(stats["held_frames"]))
    check(found == list(range(1000, 1000 + stats["held_frames"])), "the first frames are those that were kept")
    place.out.nothing("what was dropped")


def shuts(place, guest, gate):
    gate.mark(1)
    guest.send(frame_ipv4(1))
    gate.wait_held(1)
    gate.order("shut")
    guest.send(frame_ipv4(2))
    guest.send(frame_arp(3))
    gate.order("release 1")
    place.out.nothing("shut")
    gate.order("mark 2", "error")
    gate.order("pass", "error")
    gate.order("shut")
    place.out.nothing("shut, then told to pass")
    stats = gate.stats()
    check(stats["held_frames"] == 0 and stats["dropped"] >= 1 and not stats["holding"], f"shut: {stats}")
