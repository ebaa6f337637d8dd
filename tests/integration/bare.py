# SPDX-License-Identifier: Apache-2.0
"""The bare guest (bench/guests) in a QEMU of its own, and a look at its memory from outside.

What lies where is read from bench/guests/layout.h, so that guest and host cannot differ.
"""
import mmap
import os
import re
import socket
import struct

from processes import Process
from qmp import Qmp
from understudy_test import SOURCE, Serial, bare_image, check, wait_for

LAYOUT = os.path.join(SOURCE, "bench/guests/layout.h")
HEADER_FIELDS = ("magic", "version_cpus", "counter", "pages", "area", "low", "high", "tsc_khz")
CPU_FIELDS = ("begun", "done", "writes", "checks", "timer", "gap")


def layout():
    """The numbers of layout.h."""
    with open(LAYOUT) as file:
        found = re.findall(r"^#define GUEST_(\w+)\s+(0x[0-9a-f]+|\d+)u?\b", file.read(), re.M)
    return {name: int(value, 0) for name, value in found}


class Lines(Serial):
    """What the bare guest said."""

    def corrupt(self):
        """Once its line is whole."""
        found = re.search(r"^(CORRUPT|FATAL) [^\r\n]*(?=\r?\n)", self.text(), re.M)
        return found and found.group(0)

    def ready(self):
        return re.search(r"^ready .*\n", self.text(), re.M)

    def all_progress(self):
        """{"writes", "timer", "gap_us", "longest_us"} of each progress line."""
        lines = [line.split() for line in re.findall(r"^progress (.*)\r?\n", self.text(), re.M)]
        return [{name: int(value) for name, value in zip(words[::2], words[1::2])} for words in lines]

    def progress(self):
        """Of the last one, or None."""
        return (self.all_progress() or [None])[-1]


class Bare:
    """One bare guest under QEMU, with its memory in a file."""

    def __init__(self, run, cmdline, name="bare", machine="q35", cpus=1, memory=64, below=0, accel="tcg",
                 arguments=()):
        """`memory` in MiB; of those `below` lie under 4 GiB, or all."""
        self.run, self.name, self.layout, self.accel = run, name, layout(), accel
        self.memory, self.below = memory, below or memory
        if below:
            machine += f",max-ram-below-4g={below}M"
        self.machine, self.cpus, self.cmdline, self.arguments = machine, cpus, cmdline, list(arguments)
        self.ram = self.path("ram")
        self.process = self.qmp_connection = self.map = None

    def path(self, what):
        return os.path.join(self.run.directory, f"{self.name}.{what}")

    def start(self):
        with open(self.ram, "wb") as file:
            file.truncate(self.memory << 20)
        argv = ["qemu-system-x86_64", "-accel", self.accel, "-M", f"{self.machine},memory-backend=ram", "-nodefaults",
                "-no-user-config", "-display", "none", "-no-reboot", "-smp", str(self.cpus), "-m", str(self.memory),
                "-object", f"memory-backend-file,id=ram,size={self.memory}M,mem-path={self.ram},share=on",
                "-kernel", bare_image(self.run.build), "-append", f"cpus={self.cpus} {self.cmdline}",
                "-chardev", f"file,id=serial,path={self.path('serial')},append=on", "-serial", "chardev:serial",
                "-qmp", f"unix:{self.path('qmp')},server=on,wait=off"] + self.arguments
        self.process = Process(self.name, argv, self.path("log"))
        with open(self.ram, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), self.memory << 20)
        return self

    def qmp(self, command, **arguments):
        if not self.qmp_connection:
            self.qmp_connection = Qmp(self.path("qmp"))
        return self.qmp_connection(command, **arguments)

    def serial(self):
        return Lines(self.path("serial"))

    def story(self):
        logs = []
        for what in "serial", "log":
            try:
                with open(self.path(what), errors="replace") as file:
                    logs.append(f"--- {what}\n" + file.read()[-1500:])
            except OSError:
                pass
        return "\n".join(logs)

    # -- waiting ------------------------------------------------------------------------------------------
    def wait_ready(self, seconds=20):
        return self.wait("ready", lambda: self.serial().ready(), seconds)

    def wait(self, what, poll, seconds=20):
        """poll()'s first true value; the guest must not find damage meanwhile."""
        value = wait_for(what, seconds, lambda: self.serial().corrupt() or poll(), self.story)
        check(not self.serial().corrupt(), f"waiting for {what}: {self.serial().corrupt()}", self.story)
        return value

    def wait_passes(self, count=2, seconds=20):
        first = self.serial().passes()
        self.wait(f"{count} more passes", lambda: self.serial().passes() >= first + count, seconds)

    def wait_corrupt(self, seconds=20):
        """What the guest found."""
        return wait_for("the guest to find the damage", seconds, lambda: self.serial().corrupt(), self.story)

    def wait_result(self, seconds=20):
        """The result; the guest has reset its machine, and QEMU is gone."""
        result = self.wait("a result", lambda: self.serial().result(), seconds)
        wait_for("the end of QEMU after the guest's reset", 10, lambda: not self.process.running(), self.story)
        return result

    # -- memory, as the host sees it ----------------------------------------------------------------------
    def offset(self, address):
        """Of an address within the file."""
        return address if address < self.layout["HIGH"] else address - self.layout["HIGH"] + (self.below << 20)

    def read(self, address, count):
        return self.map[self.offset(address):self.offset(address) + count]

    def write(self, address, data):
        self.map[self.offset(address):self.offset(address) + len(data)] = data

    def words(self, address, names):
        return dict(zip(names, struct.unpack_from(f"<{len(names)}Q", self.map, address)))

    def header(self):
        return self.words(self.layout["HEADER"], HEADER_FIELDS)

    def cpu(self, number):
        return self.words(self.layout["CPUS"] + number * self.layout["PAGE_BYTES"], CPU_FIELDS)

    def page_address(self, number):
        header = self.header()
        if number < header["low"]:
            return header["area"] + number * self.layout["PAGE_BYTES"]
        return header["high"] + (number - header["low"]) * self.layout["PAGE_BYTES"]

    def entry_address(self, number):
        return self.layout["TABLE"] + 8 * number

    def written(self, cpu, first, end):
        """Page frame numbers in a vCPU's ring."""
        size = self.layout["RING_ENTRIES"]
        check(end - first <= size, f"{end - first} entries, and the ring has {size}")
        base = self.layout["RINGS"] + cpu * size * 8
        return [struct.unpack_from("<Q", self.map, base + n % size * 8)[0] for n in range(first, end)]

    def stopped(self):
        """with bare.stopped(): the vCPUs stand still."""
        return Stopped(self)


class Stopped:
    def __init__(self, bare):
        self.bare = bare

    def __enter__(self):
        self.bare.qmp("stop")

    def __exit__(self, *_):
        self.bare.qmp("cont")


class Debugger:
    """Just enough of gdb's remote protocol to write a register of a stopped vCPU, which QMP cannot."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self("qXfer:features:read:target.xml:0,ffb")  # before it, QEMU numbers no registers
        self.registers = re.findall(r'<reg name="(\w+)"', self.feature("i386-64bit.xml"))

    def __call__(self, command):
        total = sum(command.encode()) % 256
        self.socket.sendall(f"${command}#{total:02x}".encode())
        got = b""
        while not re.search(rb"\$[^#]*#..", got):
            data = self.socket.recv(4096)
            check(data, "QEMU's debugger hung up")
            got += data
        self.socket.sendall(b"+")
        return re.search(rb"\$([^#]*)#", got).group(1).decode()

    def feature(self, name):
        text, more = "", True
        while more:
            part = self(f"qXfer:features:read:{name}:{len(text):x},800")
            more = part.startswith("m")
            text += part[1:]
        return text

    def write(self, register, value):
        """`value`: bytes, the lowest first."""
        number = self.registers.index(register)
        check(self(f"P{number:x}={value.hex()}") == "OK", f"QEMU's debugger did not write {register}")

    def close(self):
        self.socket.close()
