# SPDX-License-Identifier: Apache-2.0
"""The network gate with real frames: a tap that the test holds in a guest's place, a bridge, an observer on it.

gate-tool (tests/integration/gate) opens the gate and obeys lines; so it can be killed like an engine.
"""
import errno
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
from understudy_test import Skip, check, wait_for

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
TUNSETVNETHDRSZ = 0x400454D8
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, ETH_P_ALL = 263, 8, 15, 3
GUEST_MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
MAGIC = b"understudy-gate:"
QUIET = 0.25  # how long nothing must come to say that nothing comes


# -- frames ---------------------------------------------------------------------------------------------------
def label(number, size=0):
    text = MAGIC + b"%08d" % number
    return text + b"." * max(0, size - len(text))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(kind, payload, source=GUEST_MAC, target=OTHER_MAC, tags=()):
    body = b"".join(struct.pack("!HH", 0x8100, tag) for tag in tags)
    return target + source + body + struct.pack("!H", kind) + payload


def ipv4(payload, protocol=17, source="10.9.0.2", target="10.9.0.3"):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(payload, port=9):
    return struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def ipv6(payload):
    address = socket.inet_pton(socket.AF_INET6, "fd00::2"), socket.inet_pton(socket.AF_INET6, "fd00::3")
    return struct.pack("!IHBB", 6 << 28, len(payload), 17, 64) + b"".join(address) + payload


def frame_ipv4(number, size=0, **options):
    return ethernet(0x0800, ipv4(udp(label(number, size))), **options)


def frame_ipv6(number, size=0, **options):
    return ethernet(0x86DD, ipv6(udp(label(number, size))), **options)


def frame_arp(number, **options):
    return ethernet(0x0806, struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, GUEST_MAC, socket.inet_aton("10.9.0.2"),
                                        bytes(6), socket.inet_aton("10.9.0.3")) + label(number), **options)


def frame_other(number, **options):
    return ethernet(0x88B5, label(number, 60), **options)


def frame_large(number, size=60000):
    """A TCP frame as a guest with segmentation offload writes it: (virtio_net_hdr, frame)."""
    data = label(number, size)
    pseudo = socket.inet_aton("10.9.0.2") + socket.inet_aton("10.9.0.3") + struct.pack("!HH", 6, 20 + len(data))
    tcp = struct.pack("!HHIIBBHHH", 4000, 9, 1, 1, 0x50, 0x10, 1000, ~checksum(pseudo) & 0xFFFF, 0) + data
    return struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16), ethernet(0x0800, ipv4(tcp, protocol=6))


def numbers(frames):
    return [int(frame[frame.index(MAGIC) + len(MAGIC):][:8]) for frame in frames]


# -- the place ------------------------------------------------------------------------------------------------
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


# -- nfqueue --------------------------------------------------------------------------------------------------
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
    stop, number, passing = threading.Event(), [0], set()

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


# -- relay ----------------------------------------------------------------------------------------------------
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


def test_relay_dgram_holds_in_order(run):
    holds_in_order(*relay_dgram(run))


def test_relay_dgram_holds_every_kind(run):
    relay_holds_every_kind(*relay_dgram(run))


def test_relay_dgram_keeps_the_bound(run):
    place, guest, gate = relay_dgram(run, bound=1 << 20)
    keeps_the_bound(place, guest, gate, 1 << 20)


def test_relay_dgram_shuts(run):
    shuts(*relay_dgram(run))


def test_relay_dgram_dies(run):
    place, guest, gate = relay_dgram(run)
    busy = Gate(run, "relay", f"tap0,from={guest.own},to={guest.peer}")
    check("another program" in busy.opened, busy.opened)
    relay_dies(run, place, guest, gate, f"tap0,from={guest.own},to={guest.peer}")


def test_relay_dgram_outlives_qemu(run):
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


def test_relay_dgram_moves_many(run):
    moves_many(*relay_dgram(run))


def test_relay_tap_holds_in_order(run):
    holds_in_order(*relay_tap(run))


def test_relay_tap_holds_every_kind(run):
    place, guest, gate = relay_tap(run)
    epoch = relay_holds_every_kind(place, guest, gate)
    holds_large(place, guest, gate, epoch)


def test_relay_tap_keeps_the_bound(run):
    place, guest, gate = relay_tap(run, bound=1 << 20)
    keeps_the_bound(place, guest, gate, 1 << 20)


def test_relay_tap_shuts(run):
    shuts(*relay_tap(run))


def test_relay_tap_dies(run):
    place, guest, gate = relay_tap(run)
    relay_dies(run, place, guest, gate, "tap0,guest=qemu0")


def test_relay_tap_moves_many(run):
    moves_many(*relay_tap(run))


def test_relay_tap_hides_the_guest_from_the_host(run):
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


def test_relay_tap_reports_a_lost_tap(run):
    place, guest, gate = relay_tap(run)
    gate.mark(1)
    os.close(guest.fd)
    gate.event("failed")
    gate.order("mark 2", "error")
    gate.order("release 1", "error")


def test_relay_tap_refuses_a_bridged_tap(run):
    place = Place(run)
    place.tap("qemu0")
    gate = Gate(run, "relay", "tap0,guest=qemu0")
    check("port of a bridge" in gate.opened, gate.opened)


# -- plug -----------------------------------------------------------------------------------------------------
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


def test_plug_holds_in_order(run):
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


def test_plug_holds_every_kind(run):
    place, guest, gate = plug(run)
    epoch = 1
    for name, build in {**KINDS, **OTHER_KINDS}.items():
        holds_kind(place, guest, gate, name, build, epoch)
        epoch += 2
    holds_large(place, guest, gate, epoch)


def test_plug_keeps_the_bound(run):
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


def test_plug_shuts(run):
    shuts(*plug(run))


def test_plug_killed_fails_closed(run):
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
