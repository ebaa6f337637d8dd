# SPDX-License-Identifier: Apache-2.0
"""A hostile primary: builds protocol frames by hand, from docs/protocol.md, to send to a real standby."""
import ctypes
import ctypes.util
import os
import socket
import ssl
import struct
import threading

import processes

MAGIC, VERSION = 0x31545355, 1
CONFIRMATION = b"\x06"  # the standby's first byte, when our certificate satisfies it
HELLO, WELCOME, REFUSE, DESCRIBE, HEARTBEAT, COMMIT, ACK, VERIFY, PAGE_SUMS_WANTED, PAGES = 1, 2, 3, 4, 6, 9, 10, 11, 20, 32
HEADER = struct.Struct("<IBBHIIQQQQQQ")

_xxhash = None


def xxh3(data):
    global _xxhash
    if _xxhash is None:
        _xxhash = ctypes.CDLL("libxxhash.so.0")
        _xxhash.XXH3_64bits.restype = ctypes.c_uint64
        _xxhash.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return _xxhash.XXH3_64bits(data, len(data)) if data else 0


def frame(kind, payload=b"", session=0, sequence=0, generation=1, epoch=0, length=None, magic=MAGIC,
          version=VERSION, flags=0, reserved=0):
    """A whole frame with right sums, whatever its fields say."""
    head = HEADER.pack(magic, version, kind, flags, len(payload) if length is None else length, reserved,
                       session, sequence, generation, epoch, xxh3(payload), 0)[:56]
    return head + struct.pack("<Q", xxh3(head)) + payload


def hello(uuid, lane=0, lanes=1, page_bytes=4096, detect_ms=2000, required=0, version_min=1, version_max=1,
          host=b"mallory"):
    return struct.pack("<HHHHIIQQ16s16sQ64s", version_min, version_max, lane, lanes, page_bytes, detect_ms, 3,
                       required, uuid, os.urandom(16), 0, host)


class Client:
    """One TLS connection to the standby, from inside a network namespace."""

    def __init__(self, network, address, ca=None, certificate=None, key=None, version=None, seconds=5):
        self.error, self.tls, self.confirmed = None, None, False
        done = threading.Thread(target=self._connect, args=(network, address, ca, certificate, key, version,
                                                            seconds))
        done.start()
        done.join()
        if self.error:
            raise self.error

    def _connect(self, network, address, ca, certificate, key, version, seconds):
        try:
            processes.enter_network(network)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if version:
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.maximum_version = version
            if certificate:
                context.load_cert_chain(certificate, key)
            raw = socket.create_connection(address, timeout=seconds)
            self.raw = raw
            self.tls = context.wrap_socket(raw)
        except (OSError, ssl.SSLError) as error:
            self.error = error

    def send(self, data):
        """False when the standby closed the connection first."""
        try:
            self.tls.sendall(data)
            return True
        except OSError:
            return False

    def read_all(self, limit=1 << 20):
        """What the standby sends until it closes (or the timeout): (bytes, closed)."""
        got = b""
        try:
            while len(got) < limit:
                data = self.tls.recv(65536)
                if not data:
                    return got, True
                got += data
        except socket.timeout:
            return got, False
        except OSError:
            return got, True
        return got, False

    def read_frame(self):
        """(type, payload, generation, epoch) of the next frame, or None when the connection ended."""
        if not self.confirmed:
            if self._exactly(1) != CONFIRMATION:
                return None
            self.confirmed = True
        head = self._exactly(HEADER.size)
        if head is None:
            return None
        fields = HEADER.unpack(head)
        assert fields[0] == MAGIC and xxh3(head[:56]) == fields[11], "the standby's own frame is bad"
        payload = self._exactly(fields[4]) if fields[4] else b""
        return None if payload is None else (fields[2], payload, fields[8], fields[9])

    def _exactly(self, count):
        got = b""
        try:
            while len(got) < count:
                data = self.tls.recv(count - len(got))
                if not data:
                    return None
                got += data
        except OSError:
            return None
        return got

    def close(self):
        if self.tls:
            self.tls.close()
