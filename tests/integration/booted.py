# SPDX-License-Identifier: Apache-2.0
"""Guests that have booted already.

Most tests want a guest that runs and do not care how it came to run; a boot under TCG costs two seconds of processor
time, more than all else in many a test. So the first test of a run that wants a machine boots one, saves it when it is
ready (stopped, its memory and devices as a migration stream, its disks, what it has said), and the machine that it then
gets, and each later test, is that one going on from there:

    serial  ...probe, tick 100, tick 200 ┊ tick 300 ...
            made once, saved, ended ─────┊──> loaded by as many QEMUs as want it

A machine is known by QEMU's command line and its disks, less the test's own directory. None of it outlives the run.
"""
import fcntl
import hashlib
import os
import re

import understudy_test as us
from processes import Process
from qmp import Qmp


def stream(pair, qemu, path):
    """Saves the machine, which does not run after that."""
    with Qmp(pair.path("alpha.qmp")) as qmp, open(path, "wb") as file:
        qmp("stop")
        qmp.give("state", file.fileno())
        qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        qmp("migrate", uri="fd:state")

        def status():
            return qmp("query-migrate")["status"]
        us.wait_for("the machine is saved, or cannot be", 60, lambda: status() in ("completed", "failed"), pair.story)
        us.check(status() == "completed", "the machine could not be saved", pair.story)
        qmp("quit")
    qemu.wait(20)


class Booted:
    """One machine of one run, saved when it was ready, or to be saved now."""

    def __init__(self, pair, argv):
        self.pair, self.argv = pair, argv
        key = repr([argv, [vars(disk) for disk in pair.devices.disks]]).replace(pair.directory, "")
        self.directory = os.path.join(pair.run.booted, hashlib.sha256(key.encode()).hexdigest())

    def path(self, name):
        return os.path.join(self.directory, name)

    def start(self, seconds):
        """The machine's process; it runs, and has said something new."""
        os.makedirs(self.directory, exist_ok=True)
        with open(self.path("lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(self.path("said")):
                self.make(seconds)
        return self.load()

    def make(self, seconds):
        pair, serial = self.pair, self.pair.serial("alpha")
        qemu = pair.boot(self.argv, seconds=seconds)
        roles = [role for role in (pair.devices.roles or "").split(",") if role not in ("", "idle")]

        def ready():
            return all(re.search(rf"^ready {role}\r?\n", serial.text(), re.M) for role in roles)
        us.wait_for(f"the guest is ready: {roles}", seconds,
                    lambda: ready() or serial.corrupt() or not qemu.running(), pair.story)
        us.check(qemu.running() and not serial.corrupt(), f"the guest is not ready: {serial.corrupt()}", pair.story)
        stream(pair, qemu, self.path("state"))
        for index in pair.devices.written():
            pair.run.command("cp", "--sparse=always", pair.devices.disk_path("alpha", index), self.path(f"disk{index}"))
        pair.run.command("cp", pair.path("alpha.serial"), self.path("said.new"))
        os.rename(self.path("said.new"), self.path("said"))

    def load(self):
        """A QEMU with the machine in it. What the machine said before stands at the beginning of its serial log."""
        pair = self.pair
        for index in pair.devices.written():  # into the file that is there, whose owner it may have to have
            pair.run.command("cp", "--sparse=always", self.path(f"disk{index}"), pair.devices.disk_path("alpha", index))
        pair.run.command("cp", self.path("said"), pair.path("alpha.serial"))
        os.chmod(pair.path("alpha.serial"), 0o666)  # where QEMU is not root
        ticks = len(pair.serial("alpha").ticks())
        at = self.argv.index("-serial")
        argv = [*self.argv[:at], "-chardev", f"file,id=said,append=on,path={pair.path('alpha.serial')}",
                "-serial", "chardev:said", *self.argv[at + 2:], "-incoming", "fd:0"]
        with open(self.path("state"), "rb") as state:
            qemu = Process("primary's QEMU", argv, pair.log("alpha-qemu"), pair.run.network("alpha"), input=state)
        with Qmp(pair.path("alpha.qmp"), 60) as qmp:
            us.wait_for("the machine is loaded", 60, lambda: qmp("query-status")["status"] != "inmigrate", pair.story)
            qmp("cont")
        pair.wait_said(qemu, ticks + 1, 60)
        return qemu
