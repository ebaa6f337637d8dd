#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The main job, on this machine: a Linux guest under protection, its primary killed, the standby taking over.

Two network namespaces play the two hosts, a third one those outside: a client that writes to Redis in the guest over one
TCP connection, and an observer of a counter that the guest sends. fio writes and checks a disk in the guest. Everything
shown is measured in this run; build/demo.json has it all.
"""
import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "integration"))
import clients  # noqa: E402
from services import Disk, image  # noqa: E402
from understudy_test import Run, has_hardware_virtualisation, wait_for  # noqa: E402

MEMORY = 256


class Screen:
    """One line that moves on a terminal, plain lines elsewhere."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.began = time.monotonic()

    def say(self, text):
        sys.stdout.write(("\r\033[K" if self.terminal else "") + f"[{time.monotonic() - self.began:6.1f} s] {text}\n")
        sys.stdout.flush()

    def move(self, text):
        if self.terminal:
            sys.stdout.write(f"\r\033[K           {text}")
            sys.stdout.flush()


class World:
    """Those outside, who must not have been told of anything that is lost."""

    def __init__(self, run, pair, screen):
        self.run, self.pair, self.screen = run, pair, screen
        self.killed = self.seen = None

    def begin(self):
        outside = self.run.outside().name
        self.redis = clients.Redis(outside, pace_s=0.005).start()
        self.observer = clients.Observer(outside).start()
        wait_for("the guest answers those outside", 30,
                 lambda: self.error() or self.redis.last() > 20 and min(self.observer.highest.values()) > 20,
                 self.pair.story)
        output, disks = (self.pair.status("alpha")[key] for key in ("output", "disks"))
        self.screen.say(f"outside: a client writes to Redis in the guest, an observer reads its counter; output is held by "
                        f"the {output['gate']} gate; {disks['count']} disks are copied")

    def error(self):
        return self.redis.error or self.observer.error

    def host_died(self):
        """All that was let out has arrived: the wire is short, and nobody detects anything for a while."""
        self.killed = time.monotonic()
        time.sleep(0.1)
        self.seen, self.acknowledged = max(self.observer.highest.values()), self.redis.last()

    def judge(self, committed):
        """What was promised, and what became of it."""
        wait_for("those outside go on", 60,
                 lambda: self.error() or self.redis.last() > self.acknowledged + 20 and
                 min(self.observer.highest.values()) > self.seen + 20, self.pair.story)
        self.observer.stop()
        self.redis.stop()
        kept = self.redis.verify()
        gap = self.redis.gap(self.killed - 1)[0] * 1000
        self.screen.say(f"client: the same TCP connection, {gap:.0f} ms without an answer, all {kept} acknowledged writes are "
                        f"there ({self.acknowledged} before the kill)")
        self.screen.say(f"observer: {self.seen} was the last it saw of the primary, the standby resumed from {committed}")
        self.wait_disk()
        self.screen.say("disk: fio at the standby finds what it wrote at the primary")
        return {"acknowledged_before": self.acknowledged, "acknowledged_after": kept, "client_gap_ms": gap,
                "seen_before": self.seen, "resumed_from": committed}

    def wait_disk(self):
        serial = self.pair.serial("beta")
        wait_for("two passes of fio", 60, lambda: serial.corrupt() or serial.text().count("fio: pass") >= 2,
                 self.pair.story)
        if serial.corrupt():
            raise AssertionError(f"the guest says {serial.corrupt()}")


class Watcher(threading.Thread):
    """Polls the primary, so that the newest acknowledged checkpoint before the kill is known."""

    def __init__(self, pair, screen):
        super().__init__(daemon=True)
        self.pair, self.screen, self.status, self.stop = pair, screen, None, False

    @staticmethod
    def output(status):
        delay = status.get("output", {}).get("delay_ms")
        return f", output waits {delay['p50']:.0f} ms" if delay else ""

    def run(self):
        shown = 0
        while not self.stop:
            status = self.pair.status("alpha")
            if status and status.get("checkpoints"):
                self.status = status
                if time.monotonic() > shown + 0.25:
                    shown = time.monotonic()
                    self.screen.move(f"checkpoint {status['committed_epoch']}, pause p50 {status['pause_ms']['p50']:.2f} "
                                     f"p99 {status['pause_ms']['p99']:.2f} ms, {status['dirty_pages']['last']:.0f} dirty "
                                     f"pages, {status['wire_bytes'] / 2**20:.0f} MiB on the wire{self.output(status)}")
            time.sleep(0.005)


def protect(pair, world, screen, seconds):
    screen.say(f"host alpha: booting a Linux guest, {MEMORY} MiB, in an ordinary QEMU ({accelerator()})")
    pair.start_guest()
    said = pair.serial("alpha").text().split("ready writers", 1)[-1].split("\n")[0]
    screen.say(f"guest is up and checks its own memory: writers{said}")
    if world:
        pair.wait_ready("redis", "counter", "fio")
    screen.say("host beta: standby starts and listens")
    pair.standby()
    screen.say("host alpha: attaching to the running QEMU")
    pair.protect("alpha", protected=False)
    watcher = Watcher(pair, screen)
    watcher.start()
    pair.wait_protected("alpha")
    status = pair.status("alpha")
    copy = status["initial_copy"]
    screen.say(f"PROTECTED over {status['tls']}, {status['lanes']} lanes; first copy {copy['bytes'] / 2**20:.0f} MiB "
               f"in {copy['seconds']:.2f} s while the guest ran")
    if world:
        world.begin()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.2)
    return watcher


def verify(run, pair, screen):
    screen.say("comparing all memory of both sides, block by block, at checkpoints")
    out, _, code = run.us("verify", pair.config("alpha"), "--host", "alpha", "--json", expect=(0, 5), seconds=110)
    result = json.loads(out)
    for block in result["blocks"]:
        screen.say(f"    {block['name']:<28} {block['pages']:>7} pages, {block['differing']} differ")
    return code == 0 and result["equal"]


def take_over(pair, watcher, world, screen):
    screen.say("SIGKILL to the primary's QEMU and engine")
    watcher.stop = True
    watcher.join()
    killed = time.monotonic()
    pair.qemu.signal(signal.SIGKILL)
    pair.engines["alpha"].signal(signal.SIGKILL)
    if world:
        world.host_died()
    status = wait_for("the standby takes over", 30,
                      lambda: (lambda s: s if s and s["state"] == "active" else None)(pair.status("beta")),
                      pair.story, every=0.005)
    running = time.monotonic() - status["since_s"]
    return status, (running - killed) * 1000


def first_whole_pass(pair, screen):
    """The guest's own checker has seen every page since the takeover."""
    serial = pair.serial("beta")

    def passes():
        return serial.text().count("\npass ")
    wait_for("two full passes of the guest's own check", 60, lambda: passes() >= 2 or serial.corrupt(), pair.story,
             every=0.1)
    if serial.corrupt():
        screen.say(f"the guest found its memory wrong: {serial.corrupt()}")
    return not serial.corrupt()


def accelerator():
    return "kvm" if has_hardware_virtualisation() else "tcg"


def load(dirty, interval_ms):
    """A guest that writes about `dirty` different pages in each interval, and checks all it has written."""
    rate = dirty * 2000 / interval_ms  # twice around, so that few of the hot pages are left out
    return f"us.mem=96M us.hot={dirty} us.rate={rate:.0f} us.mode=mixed us.check=5000"


def why_alone(options):
    """Why nobody outside can take part, or None."""
    if options.plain:
        return "--plain"
    return None if os.path.exists("/dev/net/tun") else "no /dev/net/tun here"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--seconds", type=float, default=10, help="how long to protect before the kill")
    parser.add_argument("--interval", type=int, default=50, metavar="MS", help="time between checkpoints")
    parser.add_argument("--dirty", type=int, default=300, metavar="PAGES", help="pages the guest writes in an interval")
    parser.add_argument("--detect", type=int, default=400, metavar="MS",
                        help="silence after which the standby takes over; on a busy machine 250 can be a false alarm")
    parser.add_argument("--plain", action="store_true", help="memory alone: no network, no disk, nobody outside")
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    screen = Screen()
    # AF_UNIX paths are short: the sockets live under /tmp whatever the checkout is called.
    directory = tempfile.mkdtemp(prefix="understudy-demo-")
    run = Run("demo", build, directory, seed=0)
    done = False
    try:
        alone = why_alone(options)
        screen.say(f"without network and disks: {alone}" if alone else "making the guest's image of Debian's packages")
        guest_load, around = load(options.dirty, options.interval), {}
        if not alone:
            guest_load += " us.fiodev=/dev/vdb us.fiosize=2M"
            around = {"services": "redis,counter,fio", "network": "tap",
                      "disks": (Disk(os.path.join(image(build), "empty.img")), Disk(mib=8))}
        pair = run.pair(memory=MEMORY, load=guest_load, takeover="auto", detect=f"{options.detect}ms",
                        interval=f"{options.interval}ms", **around)
        world = None if alone else World(run, pair, screen)
        watcher = protect(pair, world, screen, options.seconds)
        equal = verify(run, pair, screen)
        time.sleep(1)
        status, total = take_over(pair, watcher, world, screen)
        before = watcher.status
        ticks = wait_for("the guest speaks at the standby", 30, lambda: pair.serial("beta").ticks(), pair.story)
        first = ticks[0][0]
        acknowledged = before["probe"]["acknowledged"]
        screen.say(f"TAKEN OVER: guest runs on beta {total:.0f} ms after the kill "
                   f"({status['takeover_ms']['detect']:.0f} ms of silence, {status['takeover_ms']['total']:.1f} ms from decision "
                   "to running)")
        screen.say(f"guest's counter: {acknowledged} when last acknowledged, {first} in its first line at the standby")
        outside = world and world.judge(status["probe"]["committed"])
        whole = first_whole_pass(pair, screen)
        done = equal and whole and first >= acknowledged > 0
        done = done and (not outside or outside["seen_before"] <= outside["resumed_from"])
        result = {
            "epochs": before["checkpoints"],
            "interval_ms": before["interval_ms"],
            "pause_ms": {key: before["pause_ms"][key] for key in ("p50", "p99", "max")},
            "dirty_pages": {key: before["dirty_pages"][key] for key in ("p50", "max")},
            "initial_copy": {key: before["initial_copy"][key] for key in ("bytes", "seconds")},
            "wire_bytes": before["wire_bytes"],
            "takeover_ms": {"detect": status["takeover_ms"]["detect"], "resume": status["takeover_ms"]["total"],
                            "total": total},
            "guest_counter": {"last_acknowledged": acknowledged, "first_after": first},
            "memory_verified": equal and whole,
            "outside": outside,
            "accelerator": accelerator(),
            "tls": before["tls"],
        }
        with open(os.path.join(build, "demo.json"), "w") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        screen.say(f"{result['epochs']} checkpoints, {before['checkpoints_per_s']:.1f} a second; "
                   f"{result['dirty_pages']['p50']:.0f} dirty pages; pause p50 {result['pause_ms']['p50']:.2f} ms, p99 "
                   f"{result['pause_ms']['p99']:.2f} ms; {result['wire_bytes'] / 2**20:.1f} MiB on the wire")
        screen.say(f"memory {'verified: every page is right' if result['memory_verified'] else 'DIFFERS'}; figures in "
                   f"{os.path.join(options.build, 'demo.json')}")
    finally:
        run.close()
        if done:
            import shutil
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs are in {directory}", file=sys.stderr)
    return 0 if done else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except AssertionError as error:
        sys.exit(f"demo: {error}")
