# SPDX-License-Identifier: Apache-2.0
"""What protection costs a guest that is nothing but a workload: the guest "bare" of `understudy bench protect`.

Theory of operation

The bare guest (bench/guests) writes pages of a working set at a rate, in an order, and says how far it is. For each VMM, number
of vCPUs and rate one is booted, and measured in rounds: first while nothing protects it, then under protection, so that its
slowdown is a quotient of the same guest in the same run. Every tick it also sends a datagram to an observer outside.

    guest's progress line ──► next but N: its writes between, and its longest stop in each line, by its own TSC
    observer outside       ──► the longest silence in that time
    engines                ──► what both say and spend in that time; distributions are those of the whole row

A guest's time between two of its lines is told by this machine's clock, which looks every 10 ms.
"""
import re
import time

import clients
import costs
import kvm
import protection
from bare import Lines
from services import MAC, TAP
from understudy_test import Pair, bare_image, check, wait_for

TICK_MS = 20  # a progress line comes every tenth
KVM_NET, MICROVM_NET = "net=0xd0000000:5", "net=0xfeb00e00:23"
SPARE_MIB = 16  # the guest's image, tables and rings; all is a multiple of 2
PROGRAMS = ("ip", "bridge", "nsenter")


class QemuPair(Pair):
    """The bare guest in QEMU, in the machine that is most like our own VMM's."""

    def __init__(self, run, words, accelerator, **options):
        self.words, self.accelerator = words, accelerator
        super().__init__(run, **options)

    def qemu_command(self, host):
        return ["qemu-system-x86_64", "-name", "bare,debug-threads=on", "-accel", self.accelerator, "-M", "microvm,ioapic2=off",
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", f"{self.memory}M", "-smp",
                str(self.smp), "-serial", f"file:{self.path(host + '.serial')}",
                "-qmp", f"unix:{self.path(host + '.qmp')},server=on,wait=off",
                "-global", "virtio-mmio.force-legacy=false", "-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no",
                "-device", f"virtio-net-device,netdev=net0,mac={MAC}",
                "-kernel", bare_image(self.run.build), "-append", f"'{self.words} cpus={self.smp}'"]


def make_pair(run, options, vmm, cpus, rate, accelerator):
    words = (f"mem={options.working_set}M rate={rate} check={options.check} order={options.pattern} write={options.write} "
             f"data={options.data} fill=on irq=0 tick={TICK_MS}")
    keys = {"tag": name_of(vmm, cpus, rate), "memory": (options.working_set + SPARE_MIB + 1) // 2 * 2, "smp": cpus,
            "network": "tap", "interval": f"{options.interval}ms", "pause_share": "90", "takeover": "manual", "detect": "10s"}
    if vmm == "kvm":
        return kvm.KvmPair(run, words=f"block=ram {words} {KVM_NET}", more=("--net", f"{TAP},{MAC}"), **keys)
    return QemuPair(run, f"block=microvm.ram {words} {MICROVM_NET}", accelerator, **keys)


def name_of(vmm, cpus, rate):
    return f"{vmm}-{cpus}cpu-{rate}"


class Progress:
    """The guest's own progress lines, as they come."""

    def __init__(self, pair):
        self.lines, self.pair = Lines(pair.path("alpha.serial")), pair
        self.count = len(self.lines.all_progress())

    def next(self):
        """(when a new line was seen, all lines since the last call, or since the beginning of this)"""
        def new():
            found = self.lines.all_progress()
            return found if len(found) > self.count or self.lines.corrupt() else None
        found = wait_for("the guest's next progress line", 60, new, self.pair.story, every=0.01)
        check(not self.lines.corrupt(), f"the guest: {self.lines.corrupt()}", self.pair.story)
        since, self.count = found[self.count:], len(found)
        return time.monotonic(), since


def one_round(pair, observer, seconds):
    """What the guest does in about so long, by itself and as seen from outside."""
    progress = Progress(pair)
    began, before = progress.next()
    time.sleep(seconds)
    ended, since = progress.next()
    observer.check()
    return {"seconds": ended - began, "writes_per_s": (since[-1]["writes"] - before[-1]["writes"]) / (ended - began),
            "stops_ms": [line["gap_us"] / 1000 for line in since], "silence_ms": observer.gap("udp", since=began)[0] * 1000}


def host_cpu_s(pid):
    """Processor seconds of a VMM without its vCPUs: of our own, and of QEMU with debug-threads."""
    return costs.cpu_s(pid, costs.threads(pid, re.compile(r"vcpu-\d+|CPU \d+/")))


def protected_round(pair, observer, seconds, holding):
    """The same under protection, with what its engines and its VMM say and cost meanwhile."""
    vmm = host_cpu_s(pair.qemu.pid)
    found = protection.between(pair, holding, lambda: one_round(pair, observer, seconds))
    before, after = found.pop("status_before"), found.pop("status_after")
    pauses = after["pause_ms"]["count"] - before["pause_ms"]["count"]
    return {**found, "vmm_cpu_s": host_cpu_s(pair.qemu.pid) - vmm,
            "pause_mean_ms": (after["pause_ms"]["sum"] - before["pause_ms"]["sum"]) / pauses if pauses else None}


def measure_row(run, options, screen, vmm, cpus, rate, accelerator):
    name = name_of(vmm, cpus, rate)
    screen.say(f"{name}: the guest boots and fills its working set")
    pair = make_pair(run, options, vmm, cpus, rate, accelerator).start_guest(seconds=120)
    observer = clients.Observer(run.outside().name, tcp=False).start()
    try:
        wait_for("the guest is seen outside", 30, lambda: observer.error or observer.highest["udp"], pair.story)
        screen.say(f"{name}: unprotected")
        base = [one_round(pair, observer, options.seconds) for _ in range(options.rounds)]
        screen.say(f"{name}: protected every {options.interval} ms")
        row = protection.under_protection(run, pair, lambda holding: {"rounds": [
            protected_round(pair, observer, options.seconds, holding) for _ in range(options.rounds)]})
        check(not observer.went_back, f"seen from outside the guest went back: {observer.went_back[:3]}", pair.story)
    finally:
        observer.ending.set()
        pair.qemu.kill()
    return {"vmm": vmm, "cpus": cpus, "rate": rate, "base": base, **row}


def measure(run, options, screen):
    obstacle = kvm.obstacle(run.understudy)
    vmms = [vmm for vmm in options.vmm if vmm != "kvm" or not obstacle]
    left_out = [f"our own VMM is left out: {obstacle}"] if vmms != options.vmm else []
    accelerator = "tcg" if obstacle else "kvm"
    return {"rows": {name_of(vmm, cpus, rate): measure_row(run, options, screen, vmm, cpus, rate, accelerator)
                     for rate in options.rate for cpus in options.cpus for vmm in vmms},
            "accelerator": accelerator, "left_out": left_out}
