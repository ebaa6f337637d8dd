# SPDX-License-Identifier: Apache-2.0
"""One guest that is moved to and fro between two hosts, by Understudy or by QEMU's own migration.

Theory of operation

Each move makes a new place for the guest: a QEMU on the other host, with a second monitor that no engine touches and
a console that is read all the time. When the guest runs there, the place that it left is taken away. What is the same
for everybody is measured at those, by one clock:

    order ──► source: STOP ... RESUME ... last STOP ──► destination: RESUME        QEMU's events, QEMU's time stamps
    │                                    └──── downtime ─────┘
    └──────────────────── total ──────────────────────────────┘
    last tick on the source's console ──► first tick on the destination's: the gap, with a resolution of a tick

and the bytes at the hosts' wire, and the processor time and memory of what is at work on each side: QEMU without the
threads that run the guest, and our engine. A guest's own slowness (faults on protected pages) is not in it. The order comes
before the destination's QEMU is started, whoever starts it. What each engine says of itself stands beside it.
"""
import itertools
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import threading
import time

import costs
from processes import Process, alive, tail
from qmp import Qmp
from understudy_test import ALPHA, BETA, PORT, UUID, check, has_hardware_virtualisation, wait_for

ADDRESS = {"alpha": ALPHA, "beta": BETA}
OTHER = {"alpha": "beta", "beta": "alpha"}
QEMU_PORT = 7790
TICK_MS = 10
# QEMU's own ways: (multifd, its compression, TLS).
PEERS = {"qemu": (False, "none", False), "qemu-multifd": (True, "none", False), "qemu-tls": (False, "none", True),
         "qemu-multifd-tls": (True, "none", True),
         **{f"qemu-multifd-{method}{suffix}": (True, method, bool(suffix))
            for suffix in ("", "-tls") for method in ("zlib", "zstd")}}


NUMBERS = itertools.count(1)


class Monitor(Qmp):
    """A monitor that keeps the events which come between answers."""

    def __init__(self, path, seconds=30):
        self.events = []
        super().__init__(path, seconds)

    def take(self):
        line = self.lines.readline()
        if not line:
            raise AssertionError("QEMU ended")
        message = json.loads(line)
        if "event" in message:
            stamp = message["timestamp"]
            self.events.append((message["event"], stamp["seconds"] + stamp["microseconds"] / 1e6,
                                message.get("data", {})))
        return message

    def __call__(self, command, **arguments):
        message = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = self.take()
            if "error" in reply:
                raise AssertionError(f"QMP {command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]

    def times(self, event):
        """When it happened, as QEMU says; all that have come so far."""
        self("query-status")
        return [stamp for name, stamp, _ in self.events if name == event]

    def pid(self):
        return struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


class Consoles(threading.Thread):
    """Reads the guest's console wherever it is, and keeps when each line came."""

    def __init__(self, log):
        super().__init__(daemon=True)
        self.log = open(log, "w", buffering=1)
        self.selector, self.lock, self.ending = selectors.DefaultSelector(), threading.Lock(), False
        self.ticks, self.bad = [], None  # [(time, place)]
        self.start()

    def add(self, place, path):
        console = socket.socket(socket.AF_UNIX)
        console.connect(path)
        self.selector.register(console, selectors.EVENT_READ, [place, b""])

    def run(self):
        while not self.ending:
            for key, _ in self.selector.select(0.2):
                data, now = key.fileobj.recv(65536), time.time()
                if not data:
                    self.selector.unregister(key.fileobj)
                    key.fileobj.close()
                    continue
                *lines, key.data[1] = (key.data[1] + data).split(b"\n")
                with self.lock:
                    for line in lines:
                        self.line(now, key.data[0], line.decode(errors="replace").strip())

    def line(self, now, place, line):
        if line.startswith("tick "):
            self.ticks.append((now, place))
            return
        self.log.write(f"{now:.3f} {place} {line}\n")
        if "CORRUPT" in line or "FATAL" in line or "Kernel panic" in line:
            self.bad = self.bad or f"{line} (on {place}; {self.log.name} has its console)"

    def seen(self, place):
        with self.lock:
            check(not self.bad, f"the guest: {self.bad}")
            return [when for when, where in self.ticks if where == place]


def abilities(run):
    """{"version": (major, minor, micro), "compressions": those of multifd} of the QEMU that is installed here."""
    path = os.path.join(run.directory, "abilities.qmp")
    process = Process("QEMU", ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp",
                               f"unix:{path},server=on,wait=off"], os.path.join(run.logs, "abilities.log"))
    monitor = Monitor(path)
    version = monitor("query-version")["qemu"]
    kinds = {kind["name"]: kind for kind in monitor("query-qmp-schema")}
    parameters = kinds[kinds["migrate-set-parameters"]["arg-type"]]["members"]
    kind = next((kinds[one["type"]] for one in parameters if one["name"] == "multifd-compression"), {})
    monitor.close()
    process.kill()
    return {"version": tuple(version[part] for part in ("major", "minor", "micro")), "compressions": kind.get("values", ["none"])}


class Stayed(Exception):
    """The guest did not move in time, and runs where it did."""


class Broken(Exception):
    """The guest moved, and does not run on."""


class Guest:
    """The guest of one row of the table: so much memory, filled by itself with what does not compress."""

    def __init__(self, run, options, memory_mib, dirty_bytes_per_s):
        self.run, self.options, self.memory_mib = run, options, memory_mib
        self.tag = f"m{memory_mib}-{next(NUMBERS)}"
        self.append = (f"console=ttyS0 quiet panic=-1 no_timer_check us.block=pc.ram us.mem={memory_mib * 9 // 10 - 64}M "
                       f"us.mode={options.data} us.rate={dirty_bytes_per_s // 4096} us.check=0 us.tick={TICK_MS} us.writers=1")
        self.consoles, self.places = Consoles(os.path.join(run.logs, f"{self.tag}-console.log")), 0
        self.host, self.place, self.monitor = "alpha", None, None

    def path(self, place, name):
        return os.path.join(self.run.directory, f"{place}.{name}")

    def new_place(self):
        self.places += 1
        return f"{self.tag}-{self.places}"

    def command(self, place):
        kernel, initrd = self.run.guest
        return ["qemu-system-x86_64", "-accel", "kvm" if has_hardware_virtualisation() else "tcg", "-M", "q35",
                "-m", f"{self.memory_mib}M", "-smp", "1", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
                "-chardev", f"socket,id=console,path={self.path(place, 'console')},server=on,wait=off",
                "-serial", "chardev:console",
                "-qmp", f"unix:{self.path(place, 'qmp')},server=on,wait=off",
                "-qmp", f"unix:{self.path(place, 'monitor')},server=on,wait=off",
                "-kernel", kernel, "-initrd", initrd, "-append", f"'{self.append}'"]

    def start_qemu(self, host, place, *more):
        argv = [word.strip("'") for word in self.command(place)] + list(more)
        return Process(f"QEMU {place}", argv, os.path.join(self.run.logs, f"{place}.log"), self.run.network(host))

    def look_at(self, place, seconds=30):
        """Connect to a place's second monitor and console."""
        monitor = Monitor(self.path(place, "monitor"), seconds)
        self.consoles.add(place, self.path(place, "console"))
        return monitor

    def wait_runs(self, seconds=60):
        """The guest says something new where it is believed to be."""
        count = len(self.consoles.seen(self.place))
        wait_for(f"the guest's console on {self.place}", seconds,
                 lambda: len(self.consoles.seen(self.place)) > count + 3,
                 lambda: tail(self.consoles.log.name))

    def boot(self):
        self.place = self.new_place()
        process = self.start_qemu(self.host, self.place)
        self.monitor = self.look_at(self.place)
        check(process.running(), "QEMU ended")
        self.wait_runs(600)

    def dirty_rate(self):
        """Bytes a second, as QEMU samples it."""
        self.monitor("calc-dirty-rate", calc_time=1)
        time.sleep(1.2)
        answer = wait_for("QEMU's measurement of the dirty rate", 20,
                          lambda: (lambda a: a["status"] == "measured" and a)(self.monitor("query-dirty-rate")), every=0.1)
        return answer["dirty-rate"] << 20

    def wire_bytes(self):
        """What the hosts' wire has carried, both ways."""
        out = self.run.command("ip", "-n", self.run.network("alpha"), "-s", "-j", "link", "show", "eth0")[0]
        stats = json.loads(out)[0]["stats64"]
        return stats["tx"]["bytes"] + stats["rx"]["bytes"]

    def move(self, variant):
        """One move; a dictionary of what was measured."""
        source, place, host = self.place, self.new_place(), OTHER[self.host]
        before = self.wire_bytes()
        pid = self.monitor.pid()
        costs.reset_peak(pid)
        spent = self.own_cpu_s(self.monitor)
        mover = Engine(self, place, host) if variant == "understudy" else Qemu(self, place, host, *PEERS[variant])
        try:
            told, ordered, arrived = mover.move()
        except Stayed:
            mover.undo()
            self.wait_runs()
            raise
        cost = {"cpu_source_s": self.own_cpu_s(self.monitor) - spent + mover.source_cpu_s,
                "cpu_destination_s": self.own_cpu_s(arrived) + mover.destination_cpu_s(),
                "memory_source_bytes": costs.memory(pid, "VmHWM") + mover.source_peak,
                "memory_destination_bytes": costs.memory(arrived.pid(), "VmHWM") + mover.destination_peak()}
        stops, runs = self.monitor.times("STOP"), arrived.times("RESUME")
        check(stops and runs, f"{variant}: no STOP at the source or no RESUME at the destination")
        old, self.monitor, self.place, self.host = self.monitor, arrived, place, host
        broken = None
        try:
            self.wait_runs()
            last, first = self.consoles.seen(source)[-1], self.consoles.seen(place)[0]
        except AssertionError as error:
            broken = str(error)
        mover.end()
        end(old.pid())
        old.close()
        if broken:
            raise Broken(f"the guest did not survive the move: {broken}")
        total = runs[0] - ordered
        guest = self.memory_mib << 20
        return {"total_s": total, "downtime_ms": (runs[0] - stops[-1]) * 1000, "console_gap_ms": (first - last) * 1000,
                "wire_bytes": self.wire_bytes() - before, "throughput_bytes_per_s": guest / total, **cost, "told": told}

    def own_cpu_s(self, monitor):
        """Processor seconds of a QEMU so far, those of its guest left out."""
        return costs.cpu_s(monitor.pid(), [cpu["thread-id"] for cpu in monitor("query-cpus-fast")])

    def close(self):
        self.consoles.ending = True
        if self.monitor:
            end(self.monitor.pid())
            self.monitor.close()


def end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(f"the end of QEMU {pid}", 20, lambda: not alive(pid))


class Qemu:
    """QEMU's own: `migrate`, with or without multifd, its compression, and TLS. Its bandwidth is unbounded, its downtime limit
    ours."""

    def __init__(self, guest, place, host, multifd, compression, tls):
        self.guest, self.place, self.host = guest, place, host
        self.multifd, self.compression, self.tls = multifd, compression, tls
        self.process = None
        self.source_cpu_s, self.source_peak = 0.0, 0  # there is no engine beside QEMU

    def destination_cpu_s(self):
        return 0.0

    def destination_peak(self):
        return 0

    def credentials(self, monitor, host, endpoint):
        """The engine's own certificates, under the names that QEMU wants."""
        pki = self.guest.run.pki()
        directory = os.path.join(self.guest.run.directory, f"qemu-pki-{host}-{endpoint}")
        if not os.path.isdir(directory):
            os.makedirs(directory)
            for source, name in ("ca.pem", "ca-cert.pem"), (f"{host}.pem", f"{endpoint}-cert.pem"), \
                    (f"{host}.key", f"{endpoint}-key.pem"):
                shutil.copy(os.path.join(pki, source), os.path.join(directory, name))
        name = f"tls-{self.place}"
        monitor("object-add", qom_type="tls-creds-x509", id=name, dir=directory, endpoint=endpoint, verify_peer=True)
        return name

    def prepare(self, monitor, host, endpoint):
        monitor("migrate-set-capabilities", capabilities=[{"capability": "multifd", "state": self.multifd},
                                                          {"capability": "events", "state": True}])
        creds = self.credentials(monitor, host, endpoint) if self.tls else ""
        monitor("migrate-set-parameters", tls_creds=creds, tls_hostname=self.host if self.tls else "",
                max_bandwidth=1 << 40, downtime_limit=self.guest.options.max_downtime,
                multifd_channels=self.guest.options.lanes, multifd_compression=self.compression)

    def move(self):
        source = self.guest.monitor
        source.events.clear()
        ordered = time.time()
        self.process = self.guest.start_qemu(self.host, self.place, "-incoming", "defer")
        destination = self.guest.look_at(self.place)
        self.prepare(destination, self.host, "server")
        self.prepare(source, OTHER[self.host], "client")
        address = f"tcp:{ADDRESS[self.host]}:{QEMU_PORT}"
        destination("migrate-incoming", uri=address)
        source("migrate", uri=address)
        self.wait(source)
        # The event comes before QEMU has reckoned the time.
        info = wait_for("QEMU's total time", 10, lambda: (lambda told: told.get("total-time") and told)(source("query-migrate")),
                        every=0.01)
        ram = info["ram"]
        told = {"total_s": info["total-time"] / 1000, "downtime_ms": info["downtime"], "bytes": ram["transferred"],
                "setup_ms": info["setup-time"], "dirty_syncs": ram["dirty-sync-count"], "mbps": ram["mbps"]}
        wait_for("the guest's RESUME", 20, lambda: destination.times("RESUME"))
        return told, ordered, destination

    def wait(self, source):
        source.socket.settimeout(self.guest.options.timeout)
        while True:
            try:
                message = source.take()
            except TimeoutError:
                raise Stayed(f"not done within {self.guest.options.timeout} s")
            if message.get("event") != "MIGRATION":
                continue
            status = message["data"]["status"]
            check(status not in ("failed", "cancelled"), f"QEMU's migration {status}: {source('query-migrate')}")
            if status == "completed":
                source.socket.settimeout(30)
                return

    def end(self):
        pass

    def undo(self):
        monitor = self.guest.monitor = Monitor(self.guest.path(self.guest.place, "monitor"))  # a late line is lost
        monitor("migrate_cancel")
        wait_for("QEMU's migration to be given up", 20,
                 lambda: monitor("query-migrate")["status"] in ("cancelled", "failed"))
        end(self.process.pid)


class Engine:
    """`understudy migrate` of a guest that nothing protects; a standby waits on the other host."""

    def __init__(self, guest, place, host):
        self.guest, self.place, self.host, self.source = guest, place, host, OTHER[host]
        self.standby, self.standby_cpu_s = None, 0.0
        self.source_cpu_s, self.source_peak = 0.0, 0

    def destination_cpu_s(self):
        return costs.cpu_s(self.standby.pid) - self.standby_cpu_s

    def destination_peak(self):
        return costs.memory(self.standby.pid, "VmHWM")

    def config(self):
        guest, pki, directory = self.guest, self.guest.run.pki(), self.guest.path(self.place, "d")
        os.makedirs(directory)
        lines = ["[vm]", "name = web", f"uuid = {UUID}", f"lanes = {guest.options.lanes}", "takeover = manual", "detect = 1s"]
        for host, place in (self.source, guest.place), (self.host, self.place):
            lines += [f"[host {host}]", f"address = {ADDRESS[host]}:{PORT}", f"qmp = {guest.path(place, 'qmp')}",
                      f"command = {' '.join(guest.command(place))}", f"ca = {pki}/ca.pem", f"certificate = {pki}/{host}.pem",
                      f"key = {pki}/{host}.key", f"run-dir = {directory}", f"state-dir = {directory}",
                      f"log = {os.path.join(guest.run.logs, place + '.log')}"]
        path = os.path.join(directory, "web.ini")
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        return path

    def move(self):
        run, config = self.guest.run, self.config()
        self.standby = Process("standby", [run.understudy, "standby", config, "--host", self.host],
                               os.path.join(run.logs, f"{self.place}-standby.log"), run.network(self.host))
        wait_for("the standby", 20, lambda: run.us("status", config, "--host", self.host, expect=None)[2] == 0)
        self.guest.monitor.events.clear()
        self.standby_cpu_s = costs.cpu_s(self.standby.pid)
        ordered = time.time()
        command, said = self.start(config)
        destination = self.guest.look_at(self.place)  # before the guest runs there
        code, self.source_cpu_s, self.source_peak = costs.wait(command, self.guest.options.timeout + 60)
        commanded = time.time() - ordered
        with open(said) as file:
            out = file.read()
        if code == 1 and out and json.loads(out)["state"] == "failed":
            destination.close()
            raise Stayed(json.loads(out)["reason"])
        check(code == 0 and out, f"understudy migrate ended with {code}: {out}\n{tail(command.log)}")
        told = json.loads(out)
        check(told["state"] == "moved", f"the guest did not move: {told}")
        return {"total_s": told["seconds"], "downtime_ms": told["downtime_ms"], "bytes": told["payload_bytes"],
                "command_s": commanded, "rounds": told["rounds"],
                "expected_downtime_ms": told["expected_downtime_ms"],
                "taken_back": told["taken_back"], "taken_back_ms": told["taken_back_ms"],
                "expected_parts_ms": told["expected_parts_ms"], "final_dirty_bytes": told["final_dirty_bytes"],
                "downtime_parts_ms": told["downtime_parts_ms"]}, ordered, destination

    def start(self, config):
        """(process, file with its JSON)"""
        said = self.guest.path(self.place, "json")
        options = self.guest.options
        argv = [self.guest.run.understudy, "migrate", config, "--host", self.source, "--json", "--max-downtime",
                str(options.max_downtime), "--timeout", str(options.timeout)]
        return Process("understudy migrate", ["sh", "-c", 'exec "$@" >"$0"', said, *argv],
                       os.path.join(self.guest.run.logs, f"{self.place}-migrate.log"),
                       self.guest.run.network(self.source)), said

    def end(self):
        self.standby.signal(signal.SIGTERM)
        self.standby.wait(20)

    def undo(self):
        self.end()  # and with it its QEMU, which waits
