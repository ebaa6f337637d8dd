# SPDX-License-Identifier: Apache-2.0
"""What the integration tests stand on: two hosts (network namespaces), a guest on each, the engines between.

A test is a function `test_...(run)` in a file test_*.py; `run` is a Run. Every wait has a deadline and fails
with the ends of the logs that matter. See docs/testing.md.
"""
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import booted
import processes
import services as around
from processes import Process, alive, tail
from proxy import Proxy
from qmp import Qmp

ALPHA, BETA = "10.77.0.1", "10.77.0.2"
PORT, PROXY_PORT, OUTSIDER_PORT = 7700, 7799, 7798
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
UUID = "6f1c2a9e-3a54-4d0b-9b1e-77d0c0ffee01"


# Workloads of the guest (tests/guest/README.md).
NO_TIMER_CHECK = "no_timer_check"  # where others have the processor Linux may find that its timer does not work, and panics
STEP = "us.step=10"  # each wake-up of an emulated guest costs half a millisecond of processor time
LIGHT = "us.mem=8M us.rate=200 us.check=4000"
PAGES = "us.mem=32M us.rate=3000"
HEAVY = "us.mem=32M us.rate=max us.mode=random us.order=sequential us.check=8000"


class Skip(Exception):
    """This machine cannot run the test; the reason."""


def wait_for(what, seconds, poll, context=None, every=0.02):
    """The first true value of poll(); at the deadline an error that says what was awaited and what was seen."""
    deadline = time.monotonic() + seconds
    while True:
        value = poll()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s\n{context() if context else ''}")
        time.sleep(every)


def check(condition, message, context=None):
    if not condition:
        raise AssertionError(f"{message}\n{context() if context else ''}")


def has_hardware_virtualisation():
    with open("/proc/cpuinfo") as file:
        return bool(re.search(r"^flags\s*:.*\b(vmx|svm)\b", file.read(), re.M)) and os.path.exists("/dev/kvm")


class Serial:
    """What a guest said, as far as it has said it."""

    def __init__(self, path):
        self.path = path

    def text(self):
        try:
            with open(self.path, errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def ticks(self):
        """[(counter, rounds of the guest's own checks)] of the whole lines so far."""
        return [(int(a), int(b)) for a, b in re.findall(r"^tick (\d+) ok (\d+)\r?\n", self.text(), re.M)]

    def passes(self):
        """How often the guest has checked its whole memory."""
        return len(re.findall(r"^pass \d+ ok \d+\r?\n", self.text(), re.M))

    def result(self):
        """What the guest has computed in all its steps."""
        found = re.search(r"^result ([0-9a-f]+)\r?\n", self.text(), re.M)
        return found and found.group(1)

    def corrupt(self):
        found = re.search(r"^.*(CORRUPT|FATAL|Kernel panic).*$", self.text(), re.M)
        return found and found.group(0)

    def probe(self):
        found = re.search(r"^probe (\S+:\S+?)\r?\n", self.text(), re.M)
        return found and found.group(1)


class Run:
    """One test's place: a directory, two namespaces, processes; everything is taken away by close()."""

    def __init__(self, name, build, directory, seed, understudy=None, booted=None):
        """`understudy`: the program, where it is not that of the build directory. `booted`: a directory for guests
        that have booted already (booted.py); without it each guest boots."""
        self.name, self.build, self.directory = name, build, directory
        self.random = random.Random(seed)
        self.seed = seed
        self.logs = os.path.join(directory, "logs")
        os.makedirs(self.logs, exist_ok=True)
        self.understudy = understudy or find_binary(build)
        self.booted = booted
        self.networks, self.world = {}, None
        self.proxies = []
        self.log_file = open(os.path.join(self.logs, "test.log"), "a", buffering=1)
        self.began = time.monotonic()

    @functools.cached_property
    def guest(self):
        """(kernel, initrd) of the Linux guest; who needs none waits for none."""
        return guest_image(self.build)

    def log(self, text):
        self.log_file.write(f"{time.monotonic() - self.began:8.3f} {text}\n")

    # -- the two hosts ------------------------------------------------------------------------------------
    def network(self, host):
        if host not in self.networks:
            tag = f"us{os.getpid()}"
            self.networks.update({"alpha": f"{tag}a", "beta": f"{tag}b"})
            for name in f"{tag}a", f"{tag}b":
                self.command("ip", "netns", "add", name)
            self.command("ip", "link", "add", "eth0", "netns", f"{tag}a", "type", "veth", "peer", "name",
                         "eth0", "netns", f"{tag}b")
            for name, address in (f"{tag}a", ALPHA), (f"{tag}b", BETA):
                self.command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                self.command("ip", "-n", name, "link", "set", "lo", "up")
                self.command("ip", "-n", name, "link", "set", "eth0", "up")
        return self.networks[host]

    def lone_network(self):
        """A namespace apart from the two hosts', for a test that needs no host."""
        name = self.networks["lone"] = f"us{os.getpid()}g"
        self.command("ip", "netns", "add", name)
        return name

    def outside(self):
        """The world of the guests' clients (services.Outside), and a bridge on each host."""
        if "outside" not in self.networks:
            hosts = {host: self.network(host) for host in ("alpha", "beta")}
            self.networks["outside"] = f"us{os.getpid()}o"
            self.world = around.Outside(self, self.networks["outside"], hosts)
        return self.world

    def link(self, up):
        """The wire between the hosts: unplugged and plugged in, without a word to either TCP."""
        self.command("ip", "-n", self.network("beta"), "link", "set", "eth0", "up" if up else "down")

    # -- programs -----------------------------------------------------------------------------------------
    def command(self, *argv, expect=0, seconds=30, network=None, environment=None):
        """Runs to the end; returns (stdout, stderr, code), having checked the code unless expect is None."""
        argv = list(argv)
        if network:
            argv = ["nsenter", f"--net=/run/netns/{network}", "--"] + argv
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL,
                              env={**os.environ, **(environment or {})})
        self.log(f"$ {' '.join(argv)} -> {done.returncode} {done.stdout.strip()[-2000:]} {done.stderr.strip()[-2000:]}")
        expected = expect if isinstance(expect, (tuple, list)) or expect is None else (expect,)
        if expected is not None and done.returncode not in expected:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}, not {expect}:\n"
                                 f"{done.stdout}{done.stderr}")
        return done.stdout, done.stderr, done.returncode

    def us(self, *argv, **options):
        return self.command(self.understudy, *argv, **options)

    def fault_points(self):
        return self.us("fault-points")[0].split()

    def pki(self):
        directory = os.path.join(self.directory, "pki")
        if not os.path.isdir(directory):
            self.us("pki", "init", directory)
            self.us("pki", "host", directory, "alpha")
            self.us("pki", "host", directory, "beta")
        return directory

    def pair(self, **options):
        return Pair(self, **options)

    def close(self):
        for proxy in self.proxies:
            proxy.close()
        processes.end_descendants(os.getpid())
        for name in self.networks.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        self.log_file.close()


def find_binary(build):
    path = os.path.join(build, "understudy")
    if not os.access(path, os.X_OK):
        raise AssertionError(f"no {path}: build it first")
    return path


def bare_image(build):
    """The bare guest (bench/guests): of the build directory, or installed beside these scripts."""
    paths = [os.path.join(place, "bench/guests/bare-guest") for place in (build, SOURCE)]
    for path in paths:
        if os.path.exists(path):
            return path
    raise AssertionError(f"neither {paths[0]} nor {paths[1]}: build it first")


def guest_image(build):
    """(kernel, initrd), made once for each build directory."""
    directory = os.path.join(build, "guest")
    done = subprocess.run([os.path.join(SOURCE, "tests/guest/build.sh"), directory], timeout=300,
                          capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the guest's image could not be built: {done.stdout}{done.stderr}")
    return os.path.join(directory, "vmlinuz"), os.path.join(directory, "initrd")


def fault(*points):
    return {"UNDERSTUDY_FAULT": ",".join(points)}


class Pair:
    """A machine protected between host alpha and host beta: configuration, guest, engines, questions."""

    def __init__(self, run, machine="q35", memory=128, smp=1, load=LIGHT, disk=False, shared=False,
                 unprivileged=False, proxy=False, interval="50ms", takeover="manual", arbiter="file",
                 standby_machine=None, tag="web", network=None, disks=(), services=None, second_monitor=False,
                 boot=False, **keys):
        """`second_monitor`: alpha's QEMU also answers at alpha.qmp2, whatever the engine does. `boot`: the guest
        boots for this test, and is none that has booted already.

        `services` (roles: "redis,counter"), `disks` (services.Disk) and `network` ("tap", "dgram"): the guest
        with servers, in the world of Run.outside(). See docs/testing.md."""
        self.run, self.tag = run, tag
        self.directory = os.path.join(run.directory, tag)
        os.makedirs(self.directory, exist_ok=True)
        self.machine, self.standby_machine = machine, standby_machine or machine
        self.memory, self.smp, self.load, self.disk, self.shared = memory, smp, load, disk, shared
        self.unprivileged, self.second_monitor, self.must_boot = unprivileged, second_monitor, boot
        if network:
            run.outside()
        self.devices = around.Devices(self, disks, services, network)
        self.devices.create()
        self.probe = None
        self.engines = {}
        self.host_keys = {}  # what [host NAME] says besides
        self.qemu = None
        self.acknowledged = 0
        self.keys = {"name": tag, "uuid": UUID, "interval": interval, "takeover": takeover, "detect": "1s",
                     **{key.replace("_", "-"): value for key, value in keys.items()}}
        if disk:  # one image that both hosts open
            self.keys["shared-disks"] = "*"
        if arbiter == "file":
            arbiter = f"file:{self.path('arbiter')}"
        self.keys["arbiter"] = arbiter
        self.proxy = None
        if proxy:
            self.proxy = Proxy(run.network("alpha"), (ALPHA, PROXY_PORT), (BETA, PORT))
            run.proxies.append(self.proxy)
        self.write_config()

    def path(self, name):
        return os.path.join(self.directory, name)

    def state_file(self, host):
        return os.path.join(self.path("state"), f"{self.tag}.{host}.state")

    # -- configuration ------------------------------------------------------------------------------------
    def write_config(self, host_keys=None, **keys):
        """One file a host: they differ where the primary is to meet the proxy instead of the standby."""
        self.keys.update({key.replace("_", "-"): value for key, value in keys.items()})
        pki = self.run.pki()
        for reader in "alpha", "beta":
            lines = ["[vm]"] + [f"{key} = {value}" for key, value in self.keys.items()]
            for host, address in ("alpha", f"{ALPHA}:{PORT}"), ("beta", f"{BETA}:{PORT}"):
                if self.proxy and reader == "alpha" and host == "beta":
                    address = f"{ALPHA}:{PROXY_PORT}"
                section = {"address": address, **self.guest_keys(host),
                           "ca": f"{pki}/ca.pem", "certificate": f"{pki}/{host}.pem",
                           "key": f"{pki}/{host}.key", "run-dir": self.path("run"),
                           "state-dir": self.path("state")}
                section.update(self.host_keys.get(host, {}))
                section.update((host_keys or {}).get(host, {}))
                lines += [f"[host {host}]"] + [f"{key} = {value}" for key, value in section.items()]
            os.makedirs(self.path("run"), exist_ok=True)
            os.makedirs(self.path("state"), exist_ok=True)
            with open(self.config(reader), "w") as file:
                file.write("\n".join(lines) + "\n")

    def guest_keys(self, host):
        """What [host NAME] says of the guest there."""
        return {"qmp": self.path(f"{host}.qmp"), "command": " ".join(self.qemu_command(host)),
                "log": self.path(f"{host}-qemu.log")}

    def inside(self, host, argv):
        """The command line that runs argv on the host, beyond its network."""
        return argv

    def config(self, host):
        return self.path(f"{self.tag}-{host}.ini")

    def qemu_command(self, host):
        machine = self.machine if host == "alpha" else self.standby_machine
        accelerator = "kvm" if has_hardware_virtualisation() else "tcg"
        kernel, initramfs = self.devices.boot or self.run.guest
        block = "ram" if self.shared else "microvm.ram" if machine.startswith("microvm") else "pc.ram"
        append = ["console=ttyS0", "quiet", "panic=-1", NO_TIMER_CHECK, f"us.block={block}"]
        append += self.load.split() + self.devices.append()
        if "counter" not in (self.devices.roles or ""):  # whose clients want every number
            append.append(STEP)
        if machine.startswith("microvm"):  # no PM timer: measuring its clock fails on a busy host, and it hangs
            append.append("tsc_early_khz=2500000")
        argv = ["qemu-system-x86_64", "-accel", accelerator, "-m", f"{self.memory}M", "-smp", str(self.smp),
                "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
                "-serial", f"file:{self.path(host + '.serial')}",
                "-qmp", f"unix:{self.path(host + '.qmp')},server=on,wait=off",
                "-kernel", kernel, "-initrd", initramfs]
        if self.shared:
            argv += ["-object", f"memory-backend-memfd,id=ram,size={self.memory}M,share=on"]
            machine += ",memory-backend=ram"
        if machine.startswith("microvm"):
            machine += ",isa-serial=on,rtc=on"
        argv += ["-M", machine]
        if self.disk:
            bus = "virtio-blk-device" if machine.startswith("microvm") else "virtio-blk-pci"
            argv += ["-drive", f"file={self.path('disk.img')},if=none,id=disk,format=raw,cache=none,"
                     "aio=native,file.locking=off", "-device", f"{bus},drive=disk"]
        argv += self.devices.qemu(host)
        if self.second_monitor and host == "alpha":
            argv += ["-qmp", f"unix:{self.path('alpha.qmp2')},server=on,wait=off"]
        if self.unprivileged and host == "alpha":
            argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", *argv,
                    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        return argv + ["-append", "'" + " ".join(append) + "'"]

    # -- starting -----------------------------------------------------------------------------------------
    def start_guest(self, ticks=2, seconds=90):
        if self.disk and not os.path.exists(self.path("disk.img")):
            self.run.command(os.path.join(self.run.build, "guest", "guest-init"), "disk", self.path("disk.img"),
                             str(64 << 20))
        if self.unprivileged:
            for directory in self.run.directory, self.directory:
                os.chmod(directory, 0o777)
            for index in range(len(self.devices.disks)):
                os.chown(self.devices.disk_path("alpha", index), 65534, 65534)
        argv = [word.strip("'") for word in self.qemu_command("alpha")]
        if self.may_have_booted():
            self.qemu = booted.Booted(self, argv).start(seconds)
        else:
            self.qemu = self.boot(argv, ticks, seconds)
        self.probe = self.serial("alpha").probe()
        check(self.probe, "the guest named no probe", self.story)
        self.write_config(probe=self.probe)
        return self

    def may_have_booted(self):
        """Not where it was here before, since its disks tell; nor where what is on a disk is this test's own."""
        own = [disk for disk in self.devices.disks if (disk.content or "").startswith(self.run.directory)]
        return (self.run.booted and not self.must_boot and not self.qemu and not own
                and not has_hardware_virtualisation())

    def boot(self, argv, ticks=2, seconds=90):
        qemu = Process("primary's QEMU", argv, self.log("alpha-qemu"), self.run.network("alpha"))
        self.wait_said(qemu, ticks, seconds)
        return qemu

    def wait_said(self, qemu, ticks, seconds):
        serial = self.serial("alpha")
        wait_for(f"guest's tick {ticks}", seconds,
                 lambda: len(serial.ticks()) >= ticks or not qemu.running(), self.story, every=0.1)
        check(qemu.running(), "the primary's QEMU ended", self.story)

    def wait_ready(self, *roles, host="alpha", seconds=60):
        """The guest's servers answer."""
        serial = self.serial(host)
        for role in roles:
            wait_for(f"{role} ready on {host}", seconds,
                     lambda: serial.corrupt() or re.search(rf"^ready {role}\r?\n", serial.text(), re.M), self.story)
        check(not serial.corrupt(), f"the guest on {host}: {serial.corrupt()}", self.story)
        return self

    def shell(self, host="alpha"):
        """Commands inside the guest (services.Shell)."""
        return around.Shell(self.devices.shell_path(host))

    def log(self, name):
        return os.path.join(self.run.logs, f"{self.tag}-{name}.log")

    def start(self, role, host, faults=None, level=None, environment=None):
        argv = [self.run.understudy, role, self.config(host), "--host", host]
        argv += ["--log-level", level] if level else []
        before = len(self.engines)
        engine = Process(f"{role} on {host}", self.inside(host, argv), self.log(f"{host}-{role}"), self.run.network(host),
                         {**(fault(*faults) if faults else {}), **(environment or {})})
        self.run.log(f"started {role} on {host}, process {engine.pid}, faults {faults}, engine {before}")
        self.engines[host] = engine
        return engine

    def standby(self, host="beta", ready=True, **options):
        """After a former one ended, not before the primary knows: else "protected" may be said of that one."""
        former, primary = self.engines.get(host), "beta" if host == "alpha" else "alpha"
        if former and not former.running():
            wait_for(f"the end of the former standby is noticed on {primary}", 40,
                     lambda: not (self.status(primary) or {}).get("protected"), self.story)
        engine = self.start("standby", host, **options)
        if ready:
            wait_for(f"standby on {host} answers", 30,
                     lambda: self.status(host) or not engine.running(), self.story)
            check(engine.running(), "the standby ended", self.story)
        return engine

    def protect(self, host="alpha", protected=True, seconds=60, **options):
        engine = self.start("protect", host, **options)
        if protected:
            self.wait_protected(host, seconds)
        return engine

    def up(self, **protect):
        """Guest, standby, protection: the ordinary beginning of a test."""
        self.start_guest()
        self.standby()
        self.protect(**protect)
        return self

    # -- questions ----------------------------------------------------------------------------------------
    def serial(self, host):
        return Serial(self.path(f"{host}.serial"))

    def ask(self, host, command="status", seconds=5):
        """One request over the control socket; None when nobody answers there."""
        path = os.path.join(self.path("run"), f"{self.tag}.{host}.sock")
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(seconds)
                control.connect(path)
                control.sendall(json.dumps({"command": command}).encode() + b"\n")
                got = b""
                while not got.endswith(b"\n"):
                    data = control.recv(65536)
                    if not data:
                        break
                    got += data
            reply = json.loads(got)
        except (OSError, ValueError):
            return None
        if host == "alpha" and isinstance(reply.get("probe"), dict):
            self.acknowledged = max(self.acknowledged, reply["probe"].get("acknowledged") or 0)
        return reply

    def status(self, host):
        return self.ask(host)

    def wait_state(self, host, *states, seconds=60):
        wait_for(f"{host} in state {' or '.join(states)}", seconds,
                 lambda: (self.status(host) or {}).get("state") in states, self.story)
        return self.status(host)

    def wait_protected(self, host="alpha", seconds=60):
        engine = self.engines[host]

        def poll():
            return not engine.running() or (self.status(host) or {}).get("protected")
        wait_for(f"{host} protected", seconds, poll, self.story)
        check(engine.running(), f"the engine on {host} ended", self.story)
        return self.status(host)

    def wait_epochs(self, count, host="alpha", seconds=60):
        """So many more acknowledged checkpoints."""
        first = (self.status(host) or {}).get("checkpoints", 0)
        wait_for(f"{count} more checkpoints after {first}", seconds,
                 lambda: (self.status(host) or {}).get("checkpoints", 0) >= first + count, self.story)
        return self.status(host)

    def wait_ticks(self, host, count=5, seconds=40):
        """The guest goes on, and nothing it checked was wrong."""
        serial = self.serial(host)
        first = len(serial.ticks())
        wait_for(f"{count} more ticks on {host}", seconds,
                 lambda: len(serial.ticks()) >= first + count or serial.corrupt(), self.story, every=0.1)
        check(not serial.corrupt(), f"the guest on {host} found its memory wrong: {serial.corrupt()}",
              self.story)
        return serial.ticks()

    def guest_pid(self, host):
        return self.qemu.pid if host == "alpha" and self.qemu else self.status(host)["guest"]["pid"]

    def qmp_status(self, host):
        """What QEMU itself says of its guest; only while no engine holds its monitor."""
        try:
            with Qmp(self.path(f"{host}.qmp"), 3) as qmp:
                return qmp("query-status")["status"]
        except (AssertionError, OSError, ValueError):
            return None

    def memory_guests(self):
        """Processes of this pair's QEMUs that live."""
        found = []
        for pid in processes.descendants(os.getpid()):
            argv = processes.command_line(pid)
            if argv and "qemu-system" in argv[0] and any(self.directory in word for word in argv) and alive(pid):
                found.append(pid)
        return found

    def ticking(self, seconds=4.0):
        """Hosts whose guest says something new during this time."""
        before = {host: len(self.serial(host).ticks()) for host in ("alpha", "beta")}
        time.sleep(seconds)
        return [host for host, count in before.items() if len(self.serial(host).ticks()) > count]

    def verify(self, expect=0, seconds=90, *arguments):
        out, err, code = self.run.us("verify", self.config("alpha"), "--host", "alpha", "--json", *arguments,
                                     expect=expect, seconds=seconds)
        return json.loads(out) if out.strip() else {}

    # -- deeds --------------------------------------------------------------------------------------------
    def watch(self):
        """Keeps self.acknowledged fresh, until the returned function is called."""
        end = threading.Event()

        def loop():
            while not end.is_set():
                self.ask("alpha", seconds=1)
                end.wait(0.01)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()

        def stop():
            end.set()
            thread.join(5)
        return stop

    def kill_primary(self):
        """The primary host dies: its QEMU and its engine, at once."""
        self.run.log(f"killing QEMU {self.qemu.pid} and the engine {self.engines['alpha'].pid}")
        for number in signal.SIGSTOP, signal.SIGKILL:  # a host that dies does not tell of its guest's end
            for process in self.engines["alpha"], self.qemu:
                process.signal(number)
        self.qemu.popen.wait(10)
        self.engines["alpha"].popen.wait(10)

    def check_taken_over(self, seconds=30, passes=2):
        """The guest runs on beta, not behind what was acknowledged, and has since checked its whole memory.

        The first pass may have begun before the takeover; the second has seen every page after it."""
        self.wait_state("beta", "active", seconds=seconds)
        serial = self.serial("beta")
        wait_for(f"{passes} passes of the guest's own check on beta", 60,
                 lambda: serial.corrupt() or (serial.passes() >= passes and serial.ticks()), self.story, every=0.1)
        check(not serial.corrupt(), f"the guest on beta found its memory wrong: {serial.corrupt()}", self.story)
        first = self.serial("beta").ticks()[0][0]
        committed = self.status("beta")["probe"]["committed"]
        check(committed >= self.acknowledged,
              f"the standby resumed {committed}, behind the acknowledged {self.acknowledged}", self.story)
        check(first >= committed, f"first tick {first} is behind the committed {committed}", self.story)
        return first

    def story(self):
        """The ends of all logs, for a message about a failure."""
        parts = []
        for name in sorted(os.listdir(self.run.logs)):
            if name.startswith(self.tag):
                parts.append(f"--- {name}\n{tail(os.path.join(self.run.logs, name), 15)}")
        for host in "alpha", "beta":
            parts.append(f"--- {host}.serial\n{tail(self.path(host + '.serial'), 6)}")
            parts.append(f"--- {host}-qemu.log\n{tail(self.path(host + '-qemu.log'), 6)}")
            status = self.ask(host, seconds=1)
            parts.append(f"--- status of {host}: {json.dumps(status)}")
            engine = self.engines.get(host)
            if engine and not engine.running():
                parts.append(f"--- the engine on {host} ended with {engine.popen.returncode}")
        return "\n".join(parts)


def keep_logs(run, destination):
    os.makedirs(destination, exist_ok=True)
    for root, directories, files in os.walk(run.directory):
        directories[:] = [name for name in directories if name != "pki"]
        for name in files:
            path = os.path.join(root, name)
            if name.endswith((".log", ".serial", ".ini", ".state")) and os.path.getsize(path) < 4 << 20:
                shutil.copy(path, os.path.join(destination, name))
