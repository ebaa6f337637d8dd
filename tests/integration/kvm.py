# SPDX-License-Identifier: Apache-2.0
"""A Pair whose guests run in our own VMM: the bare guest of bench/guests on /dev/kvm."""
import json
import os
import socket
import struct
import subprocess

from processes import Process
from understudy_test import Pair, Skip, bare_image, check, wait_for

WORDS = "block=ram mem=2M rate=100 check=200 tick=100"


def program(run):
    return os.path.join(run.build, "understudy-vmm")


def obstacle(understudy):
    """Why no guest can be made, in the VMM's own words; None where one can."""
    if not os.path.exists("/dev/kvm"):
        return "no /dev/kvm"
    done = subprocess.run([understudy, "run", "--kernel", "/dev/null", "--memory", "2M"], capture_output=True, text=True,
                          timeout=20, stdin=subprocess.DEVNULL)
    if "/dev/null" in done.stderr:
        return None  # a machine was made, and only the kernel is none
    return done.stderr.strip().removeprefix("understudy run: ") or f"the VMM ended with {done.returncode}"


def need_kvm(run):
    why = obstacle(run.understudy)
    if why:
        raise Skip(why)


class KvmPair(Pair):
    def __init__(self, run, words=WORDS, memory=16, smp=1, more=(), images=(), kernel="bare-guest", **options):
        """`more`: further options of the VMM's; `images`: sizes of disks in MiB, empty on both hosts; `kernel`: which of
        bench/guests."""
        need_kvm(run)
        self.words, self.more, self.images, self.kernel = words, more, images, kernel
        super().__init__(run, memory=memory, smp=smp, **options)
        for host in "alpha", "beta":
            for index, mib in enumerate(images):
                with open(self.image(host, index), "wb") as file:
                    file.truncate(mib << 20)

    def image(self, host, index=0):
        return self.path(f"{host}-disk{index}.img")

    def guest_keys(self, host):
        return {"vmm": self.path(f"{host}.vmm"), "command": " ".join(self.vmm_command(host)),
                "log": self.path(f"{host}-qemu.log")}

    def vmm_command(self, host, understudy=True):
        argv = [self.run.understudy, "run"] if understudy else [program(self.run)]
        return argv + ["--kernel", os.path.join(os.path.dirname(bare_image(self.run.build)), self.kernel),
                       "--cmdline", f"'{self.words} cpus={self.smp}'", "--memory", f"{self.memory}M",
                       "--cpus", str(self.smp), "--control", self.path(f"{host}.vmm"),
                       "--serial", self.path(f"{host}.serial"), *self.more,
                       *(word for index in range(len(self.images)) for word in ("--disk", self.image(host, index)))]

    def start_guest(self, ticks=2, seconds=30):
        argv = [word.strip("'") for word in self.vmm_command("alpha")]
        self.qemu = Process("primary's VMM", argv, self.log("alpha-vmm"), self.run.network("alpha"))
        serial = self.serial("alpha")
        wait_for(f"guest's tick {ticks}", seconds,
                 lambda: len(serial.ticks()) >= ticks or not self.qemu.running(), self.story, every=0.1)
        check(self.qemu.running(), "the primary's VMM ended", self.story)
        self.probe = serial.probe()
        check(self.probe, "the guest named no probe", self.story)
        self.write_config(probe=self.probe)
        return self

    def check_guest(self, host="alpha", expect=0):
        """`understudy check` of this configuration."""
        out, _, _ = self.run.us("check", self.config(host), "--host", host, "--json", expect=expect)
        return json.loads(out)


class Control:
    """A visitor at a VMM's control socket, built by hand from vmm/kvm/control.h."""
    (LOOK, HELLO, TRACK, SCAN, PAUSE, RESUME, HOLD, LOAD, RUN, ANNOUNCE, RETIRE, EVENT, DISKS, TELL,
     GATE, GATE_HOLD, GATE_RELEASE, GATE_PASS, GATE_SHUT, GATE_FIGURES, GATE_EVENT, RELEASE) = range(1, 23)
    GATE_HOLDS, GATE_FAILS_OPEN = 1, 2
    BOUND = 1 << 20
    WAITING, LOADED, RUNNING, PAUSED, HELD = range(5)
    HEAD = struct.Struct("=IIiIQQQQQ")

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.sequence, self.events, self.line = 0, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def __call__(self, operation, argument=0):
        """(code, phase, text)."""
        self.sequence += 1
        bound = self.BOUND if operation == self.GATE else 0
        self.socket.send(self.HEAD.pack(operation, self.sequence, 0, 0, argument, 0, 0, 0, bound))
        sequence = 0
        while sequence == 0:
            packet = self.socket.recv(4096)
            if not packet:
                raise ConnectionResetError("the VMM hung up")
            answered, sequence, code, phase, value, _, _, self.line, _ = self.HEAD.unpack_from(packet)
            if sequence == 0:
                self.events.append((answered, value))
        assert sequence == self.sequence, f"answer {sequence} to request {self.sequence}"
        return code, phase, packet[self.HEAD.size:].rstrip(b"\0").decode()

    def tell(self, operation):
        """A request that is not answered unless it is refused."""
        self.sequence += 1
        self.socket.send(self.HEAD.pack(operation, self.sequence, *[0] * 7))

    def greet(self):
        return self(self.HELLO, 2)
