# SPDX-License-Identifier: Apache-2.0
"""Clients of the guest, outside: each keeps what it was promised, and finds out whether a promise was broken.

A client has one TCP connection for its whole life; a takeover that loses the connection is a failure. It runs in
a thread that lives in the outside network namespace. `acknowledged` grows while it runs:
[(number, sent, acknowledged)], times of time.monotonic().
"""
import random
import re
import select
import socket
import struct
import threading
import time

import processes
from services import COUNTER_PEER_PORT, COUNTER_PORT, GUEST, POSTGRES_PORT, REDIS_PORT

PATIENCE_S = 60  # longer than any takeover; an answer that never comes is an error


class Contradiction(AssertionError):
    """The server said something that cannot be, after what it had said before."""


class Writer:
    """Writes 1, 2, 3 ... one after the other, each after the former was acknowledged, until stopped.

    A subclass has connect(), write(number), which returns when the server has acknowledged it and raises
    Contradiction if what it reads back denies an earlier one, and verify(), which looks for all of them.
    `after`: a client whose numbers this one goes on with, over a connection of its own."""

    port = None

    def __init__(self, namespace, address=GUEST, pace_s=0.0, seed=1, after=None):
        self.namespace, self.address, self.pace_s = namespace, address, pace_s
        self.random = random.Random(seed)
        self.acknowledged = list(after.acknowledged) if after else []
        self.error, self.socket, self.rest = None, None, b""
        self.attempted = 0  # the last number that was sent, perhaps without an answer
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.body, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def body(self):
        try:
            processes.enter_network(self.namespace)
            self.socket = socket.create_connection((self.address, self.port), PATIENCE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connect()
            while not self.ending.is_set():
                number = self.attempted = len(self.acknowledged) + 1
                sent = time.monotonic()
                self.write(number)
                self.acknowledged.append((number, sent, time.monotonic()))
                if self.pace_s:
                    self.ending.wait(self.pace_s)
        except Exception as error:  # for the test's thread, which asks with check()
            self.error = error

    def stop(self):
        """Ends writing; the connection stays, for verify()."""
        self.ending.set()
        self.thread.join(PATIENCE_S + 5)
        self.check()
        return self

    def check(self):
        if self.error:
            raise AssertionError(f"{type(self).__name__} after {self.last()} acknowledged: {self.error!r}")

    def last(self):
        return self.acknowledged[-1][0] if self.acknowledged else 0

    def may_be_ahead(self, found):
        """The server may have done what the former client asked for and heard no answer to; no less, no more."""
        if found not in (self.last(), self.last() + 1):
            raise Contradiction(f"{self.last()} was acknowledged, the server is at {found}")

    def gap(self, since=0.0):
        """The longest time in seconds without an acknowledgement, and when it began."""
        times = [done for _, _, done in self.acknowledged if done >= since]
        return max(((after - before, before) for before, after in zip(times, times[1:])), default=(0.0, 0.0))

    def latencies(self):
        """Seconds from request to answer, in ascending order."""
        return sorted(done - sent for _, sent, done in self.acknowledged)

    # -- bytes --------------------------------------------------------------------------------------------
    def more(self):
        got = self.socket.recv(65536)
        if not got:
            raise ConnectionError("the server closed the connection")
        self.rest += got

    def take(self, count):
        while len(self.rest) < count:
            self.more()
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def take_line(self):
        while b"\r\n" not in self.rest:
            self.more()
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line.decode()


class Redis(Writer):
    """SET n:I I; then reads an earlier one, and a counter that only this client increments."""

    port = REDIS_PORT

    def connect(self):
        if self.last():
            self.may_be_ahead(int(self.call("GET", "sequence") or 0))
        self.call("SET", "sequence", self.last())

    def call(self, *words):
        data = [word.encode() for word in map(str, words)]
        self.socket.sendall(b"*%d\r\n" % len(data) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in data))
        return self.reply()

    def reply(self):
        line = self.take_line()
        kind, text = line[0], line[1:]
        if kind == "+":
            return text
        if kind == ":":
            return int(text)
        if kind == "$":
            if int(text) < 0:
                return None
            return self.take(int(text) + 2)[:-2].decode()
        if kind == "*":
            return [self.reply() for _ in range(int(text))]
        raise Contradiction(f"Redis answers {line!r}")

    def write(self, number):
        if self.call("SET", f"n:{number}", number) != "OK":
            raise Contradiction(f"SET of {number} is not OK")
        sequence = self.call("INCR", "sequence")
        if sequence != number:
            raise Contradiction(f"the counter is {sequence} after {number} increments")
        earlier = self.random.randint(1, number)
        found = self.call("GET", f"n:{earlier}")
        if found != str(earlier):
            raise Contradiction(f"n:{earlier} was acknowledged and reads {found!r}")

    def verify(self):
        """Every acknowledged value is there; call after stop()."""
        last = self.last()
        for first in range(1, last + 1, 500):
            numbers = range(first, min(first + 500, last + 1))
            found = self.call("MGET", *(f"n:{number}" for number in numbers))
            wrong = [(n, value) for n, value in zip(numbers, found) if value != str(n)]
            if wrong:
                raise Contradiction(f"{len(wrong)} acknowledged values are wrong, first {wrong[:3]}")
        return last


class Postgres(Writer):
    """INSERT of I, each a transaction; then reads how many there are and which is the last."""

    port = POSTGRES_PORT

    def connect(self):
        body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        self.socket.sendall(struct.pack("!I", len(body) + 4) + body)
        self.rows()
        if self.last():
            self.may_be_ahead(int(self.query("select max(n) from numbers")[0][0] or 0))
            self.query(f"delete from numbers where n > {self.last()}")
            return
        self.query("drop table if exists numbers")
        self.query("create table numbers (n integer primary key, filling text not null)")

    def query(self, text):
        body = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self.rows()

    def rows(self):
        """Messages up to ReadyForQuery; the data rows among them as lists of strings."""
        found, failure = [], None
        while True:
            kind, length = struct.unpack("!cI", self.take(5))
            body = self.take(length - 4)
            if kind == b"D":
                found.append(self.columns(body))
            elif kind == b"R" and struct.unpack("!I", body[:4])[0]:
                raise Contradiction("PostgreSQL wants a password")
            elif kind == b"E":
                failure = dict((part[:1], part[1:].decode()) for part in body.split(b"\0") if part)
                if failure.get(b"S") in ("FATAL", "PANIC"):
                    raise Contradiction(f"PostgreSQL: {failure.get(b'M')}")
            elif kind == b"Z":
                if failure:
                    raise Contradiction(f"PostgreSQL: {failure.get(b'M')}")
                return found

    @staticmethod
    def columns(body):
        count, at, found = struct.unpack("!H", body[:2])[0], 2, []
        for _ in range(count):
            length = struct.unpack("!i", body[at:at + 4])[0]
            at += 4
            found.append(None if length < 0 else body[at:at + length].decode())
            at += max(length, 0)
        return found

    def write(self, number):
        self.query(f"insert into numbers values ({number}, repeat('x', {number % 200}))")
        earlier = self.random.randint(1, number)
        found = self.query(f"select max(n), (select length(filling) from numbers where n = {earlier}) from numbers")
        if found != [[str(number), str(earlier % 200)]]:
            raise Contradiction(f"{number} is the last, {earlier} is there; PostgreSQL says {found}")

    def verify(self):
        last = self.last()
        found = self.query(f"select count(*), min(n), max(n), sum(length(filling)) from numbers where n <= {last}")
        wanted = [str(value) for value in (last, 1, last, sum(n % 200 for n in range(1, last + 1)))]
        if last and found != [wanted]:
            raise Contradiction(f"rows, first, last, sum are {found}, not {wanted}")
        return last


class Observer:
    """Whoever sees the guest's counter, by datagram and by stream.

    `highest` must never be beyond what the guest that goes on knows. Whether it was is also seen from here: a
    guest that went back sends values that were seen already. `went_back` has them: [(way, seen, then)]."""

    def __init__(self, namespace, address=GUEST, tcp=True):
        self.namespace, self.address, self.tcp = namespace, address, tcp
        self.highest, self.went_back, self.error = {"udp": 0, "tcp": 0}, [], None
        self.seen = []  # (time, way, value), the last of each read
        self.ending, self.listening = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.body, daemon=True)

    def start(self):
        self.thread.start()
        self.listening.wait(10)
        self.check()
        return self

    def body(self):
        try:
            processes.enter_network(self.namespace)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("", COUNTER_PEER_PORT))
            self.listening.set()
            sources = [udp]
            if self.tcp:
                stream = socket.create_connection((self.address, COUNTER_PORT), PATIENCE_S)
                sources.append(stream)
            rest = b""
            while not self.ending.is_set():
                for source in select.select(sources, [], [], 0.1)[0]:
                    data = source.recv(65536)
                    if source is udp:
                        self.saw("udp", data)
                        continue
                    if not data:
                        raise ConnectionError("the guest closed the counter's connection")
                    whole, newline, rest = (rest + data).rpartition(b"\n")
                    self.saw("tcp", whole + newline)
        except Exception as error:
            self.error = error
            self.listening.set()

    def saw(self, way, data):
        for value in map(int, re.findall(rb"^counter (\d+)$", data, re.M)):
            if value <= self.highest[way]:
                self.went_back.append((way, self.highest[way], value))
            self.highest[way] = max(self.highest[way], value)
        self.seen.append((time.monotonic(), way, self.highest[way]))

    def stop(self):
        self.ending.set()
        self.thread.join(5)
        self.check()
        return self

    def check(self):
        if self.error:
            raise AssertionError(f"the observer, at {self.highest}: {self.error!r}")

    def gap(self, way, since=0.0):
        times = [at for at, by, _ in self.seen if by == way and at >= since]
        return max(((after - before, before) for before, after in zip(times, times[1:])), default=(0.0, 0.0))
