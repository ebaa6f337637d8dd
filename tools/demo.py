#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The main job, on this machine: a Linux guest under protection, its primary killed, the standby taking over.

Two network namespaces play the two hosts. Everything shown is measured in this run; build/demo.json has it all.
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


class Watcher(threading.Thread):
    """Polls the primary, so that the newest acknowledged checkpoint before the kill is known."""

    def __init__(self, pair, screen):
        super().__init__(daemon=True)
        self.pair, self.screen, self.status, self.stop = pair, screen, None, False

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
                                     f"pages, {status['wire_bytes'] / 2**20:.0f} MiB on the wire")
            time.sleep(0.005)


def protect(pair, screen, seconds):
    screen.say(f"host alpha: booting a Linux guest, {MEMORY} MiB, in an ordinary QEMU ({accelerator()})")
    pair.start_guest()
    screen.say(f"guest is up and checks its own memory: {' '.join(pair.serial('alpha').text().split('ready', 1)[-1].split()[:6])}")
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


def take_over(pair, watcher, screen):
    screen.say("SIGKILL to the primary's QEMU and engine")
    watcher.stop = True
    watcher.join()
    killed = time.monotonic()
    pair.qemu.signal(signal.SIGKILL)
    pair.engines["alpha"].signal(signal.SIGKILL)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--seconds", type=float, default=10, help="how long to protect before the kill")
    parser.add_argument("--interval", type=int, default=50, metavar="MS", help="time between checkpoints")
    parser.add_argument("--dirty", type=int, default=300, metavar="PAGES", help="pages the guest writes in an interval")
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    screen = Screen()
    # AF_UNIX paths are short: the sockets live under /tmp whatever the checkout is called.
    directory = tempfile.mkdtemp(prefix="understudy-demo-")
    run = Run("demo", build, directory, seed=0)
    done = False
    try:
        pair = run.pair(memory=MEMORY, load=load(options.dirty, options.interval), takeover="auto", detect="250ms",
                        interval=f"{options.interval}ms")
        watcher = protect(pair, screen, options.seconds)
        equal = verify(run, pair, screen)
        time.sleep(1)
        status, total = take_over(pair, watcher, screen)
        before = watcher.status
        ticks = wait_for("the guest speaks at the standby", 30, lambda: pair.serial("beta").ticks(), pair.story)
        first = ticks[0][0]
        acknowledged = before["probe"]["acknowledged"]
        screen.say(f"TAKEN OVER: guest runs on beta {total:.0f} ms after the kill "
                   f"({status['takeover_ms']['detect']:.0f} ms of silence, {status['takeover_ms']['total']:.1f} ms from decision "
                   "to running)")
        screen.say(f"guest's counter: {acknowledged} when last acknowledged, {first} in its first line at the standby")
        whole = first_whole_pass(pair, screen)
        done = equal and whole and first >= acknowledged > 0
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
