# SPDX-License-Identifier: Apache-2.0
"""Frames that carry a number, of every kind that a gate may meet."""
import socket
import struct

GUEST_MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
MAGIC = b"understudy-gate:"


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
