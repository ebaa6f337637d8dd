# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between the two hosts, inside one host's network namespace, that can misbehave on request.

It reads no further than it may write: behind a throttle the sender sees a full window, as with a slow wire.
"""
import socket
import threading
import time

import processes

CHUNK = 32768
FORWARD, BACKWARD = "forward", "backward"  # to the standby, to the primary


class Proxy:
    def __init__(self, network, listen, target):
        self.network, self.listen_at, self.target = network, listen, target
        self.lock = threading.Lock()
        self.pairs = []
        self.refusing = False
        self.held = {FORWARD: False, BACKWARD: False}
        self.delay = 0.0  # seconds, each way
        self.rate = 0     # bytes a second to the standby, all connections together; 0: no bound
        self.budget_at = time.monotonic()
        self.bytes = {FORWARD: 0, BACKWARD: 0}
        self.corrupt_after = None  # flip one bit in what goes to the standby after so many more bytes
        self.closed = False
        ready = threading.Event()
        threading.Thread(target=self._accept, args=(ready,), daemon=True).start()
        if not ready.wait(10):
            raise AssertionError("proxy did not start")

    def cut(self):
        """Every connection ends now, and new ones are closed at once."""
        self.refusing = True
        self.drop()

    def drop(self):
        """Every present connection ends now; new ones are welcome."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def mend(self):
        self.refusing = False
        self.held = {FORWARD: False, BACKWARD: False}

    def hold(self, *directions):
        """Bytes of these directions go nowhere, with no connection closed; nothing is lost, mend() lets on."""
        for direction in directions or (FORWARD, BACKWARD):
            self.held[direction] = True

    def close(self):
        self.closed = True
        self.cut()

    def _accept(self, ready):
        processes.enter_network(self.network)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self.listen_at)
            listener.listen(64)
            listener.settimeout(0.2)
            ready.set()
            while not self.closed:
                try:
                    near, _ = listener.accept()
                except OSError:
                    continue
                if self.refusing:
                    near.close()
                    continue
                far = socket.socket()
                far.settimeout(2)
                try:
                    far.connect(self.target)
                except OSError:
                    near.close()
                    far.close()
                    continue
                for end in near, far:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    end.settimeout(None)
                    if self.rate:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                with self.lock:
                    self.pairs.append((near, far))
                for source, sink, way in (near, far, FORWARD), (far, near, BACKWARD):
                    threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source, sink, way):
        try:
            while True:
                data = source.recv(CHUNK)
                if not data:
                    break
                while self.held[way] and not self.closed:
                    time.sleep(0.005)
                if self.delay:
                    time.sleep(self.delay)
                if way == FORWARD:
                    self._pace(len(data))
                    data = self._flip(data)
                sink.sendall(data)
                self.bytes[way] += len(data)
        except OSError:
            pass
        for end in source, sink:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _pace(self, count):
        if not self.rate:
            return
        with self.lock:
            now = time.monotonic()
            self.budget_at = max(self.budget_at, now) + count / self.rate
            wait = self.budget_at - now
        time.sleep(wait)

    def _flip(self, data):
        if self.corrupt_after is None:
            return data
        with self.lock:
            if self.corrupt_after is None or self.corrupt_after >= len(data):
                self.corrupt_after = self.corrupt_after and self.corrupt_after - len(data)
                return data
            changed = bytearray(data)
            changed[self.corrupt_after] ^= 0x10
            self.corrupt_after = None
            return bytes(changed)
