#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps this machine's free memory from being given back to a host beneath it, so that a bench measures programs.

Theory of operation

A virtual machine whose balloon reports free pages (VIRTIO_BALLOON_F_REPORTING, virtio 1.2, 5.5) gives memory that nobody
uses back to its host, some 2 s after it was freed. Who touches such memory next waits for the host, several times as long as
usual (`bench/warm.py --measure`). Whether a move meets it depends on what was freed when, not on who moves.

Only whole blocks are reported, of BLOCK_ORDER and larger; smaller leftovers stay. (The same blocks are what huge pages are
made of: where there is none, the kernel first moves others' pages about to make one, for whoever asked.)

So a process of its own holds nearly all free blocks, touched, and lets go of them piece by piece as others take theirs: what
they get was in use a moment before. To hold only as much as will be wanted makes it worse: the kernel then serves others
from the rest, which the host has. Between moves, when it is asked to, it takes up again what has become free. When the
kernel runs out of memory nonetheless, it ends this process first.

The low zones (DMA, DMA32) count apart where there are others: the kernel takes from them last, and keeps a part of them from
ordinary processes for ever. So pieces that lie there are let go of last: they are no help to whoever waits.

    bench ── "settle" ──► takes all free blocks, lets go of READY ── "settled BYTES" ──► bench: the move
                          fewer free blocks than READY: lets go of a piece, and looks again
"""
import glob
import mmap
import os
import select
import signal
import subprocess
import sys
import time

PIECE = 16 << 20
READY = 96 << 20  # free blocks while a move goes: what it takes until the next look, and as much as the host may get of them
FREE_MIN = 192 << 20  # whatever its blocks are
BLOCK_ORDER = 9  # 2 MiB; Linux's pageblock_order on x86, and the default of page_reporting_order
LOOK_EVERY_S = 0.004
SETTLE_S = 300
AUTO_MAX = 64 << 30
MADV_POPULATE_WRITE = 23  # Linux 5.14
BALLOON, REPORTING = "0x0005", 5  # virtio 1.2: device id, feature bit


def free_memory(path="/proc/buddyinfo"):
    """Bytes that are free: (all, of it in blocks of BLOCK_ORDER and larger) without the low zones, and those in such blocks."""
    zones = []
    with open(path) as file:
        for line in file:  # "Node 0, zone   Normal  4029  3516 ...": the number of free blocks of each order, the smallest first
            zone, *counts = line.split("zone")[1].split()
            sizes = [(int(count) << order) * mmap.PAGESIZE for order, count in enumerate(counts)]
            zones.append((zone.startswith("DMA"), sum(sizes), sum(sizes[BLOCK_ORDER:])))
    if all(is_low for is_low, _, _ in zones):  # a small machine has nothing else
        zones = [(False, free, blocks) for _, free, blocks in zones]
    high = [zone for zone in zones if not zone[0]]
    return sum(zone[1] for zone in high), sum(zone[2] for zone in high), sum(zone[2] for zone in zones if zone[0])


def host_takes_memory(devices="/sys/bus/virtio/devices"):
    """Does a host beneath this machine get back what is free here?"""
    for device in glob.glob(f"{devices}/*"):
        try:
            with open(f"{device}/device") as kind, open(f"{device}/features") as features:
                if kind.read().strip() == BALLOON and features.read()[REPORTING:][:1] == "1":
                    return True
        except OSError:
            continue
    return False


def worth_it():
    """Where the host takes memory, and touching all of it is a matter of a minute or two."""
    return host_takes_memory() and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") <= AUTO_MAX


def touched_piece():
    piece = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    piece.madvise(mmap.MADV_HUGEPAGE)
    try:
        piece.madvise(MADV_POPULATE_WRITE)
    except OSError:
        for page in range(0, PIECE, mmap.PAGESIZE):
            piece[page] = 1
    return piece


class Hoard:
    """The memory that is held; `most` bytes of it at most."""

    def __init__(self, most, free=free_memory):
        self.pieces, self.low, self.most, self.free = [], [], most, free

    def bytes(self):
        return (len(self.pieces) + len(self.low)) * PIECE

    def take(self):
        """False: there is no piece left that may be held, or none in the low zones but what the kernel keeps."""
        free, blocks, low = self.free()
        high = free >= FREE_MIN + PIECE and blocks >= PIECE
        if self.bytes() + PIECE > self.most or not (high or low >= PIECE):
            return False
        piece = touched_piece()
        is_low = self.free()[2] <= low - PIECE // 2
        (self.low if is_low else self.pieces).append(piece)
        return high or is_low

    def fill(self):
        while self.take():
            pass

    def wanted(self):
        free, blocks, _ = self.free()
        return free < FREE_MIN or blocks < READY

    def give_way(self):
        while self.bytes() and self.wanted():
            (self.pieces or self.low).pop().close()


def serve(most):
    """The process that holds: until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench's
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    try:
        os.nice(-10)  # who waits for it waits for the host
    except OSError:
        pass
    hoard = Hoard(most)
    while True:
        hoard.give_way()
        if not select.select([sys.stdin], [], [], LOOK_EVERY_S if hoard.bytes() else None)[0]:
            continue
        if not sys.stdin.readline():
            return
        hoard.fill()
        hoard.give_way()
        print("settled", hoard.bytes(), flush=True)


class Keeper:
    """The bench's end. `wanted` false: does nothing, so that callers need not ask."""

    def __init__(self, wanted, most=1 << 62):
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--serve", str(most)], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) if wanted else None

    def settle(self):
        """Hold what has become free; bytes. One that was killed for its memory is missed by nobody."""
        if not self.process or self.process.poll() is not None:
            return 0
        try:
            self.process.stdin.write("settle\n")
        except BrokenPipeError:
            return 0
        if not select.select([self.process.stdout], [], [], SETTLE_S)[0]:
            raise AssertionError(f"free memory could not be touched within {SETTLE_S} s")
        said = self.process.stdout.readline().split()
        return int(said[1]) if said else 0

    def close(self):
        if self.process:
            self.process.communicate()
            self.process = None


def measure():
    """us a page for each PIECE of nearly all free memory, the first touch; sorted."""
    pieces, costs = [], []
    while free_memory()[0] > FREE_MIN + 64 * PIECE:
        piece = mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        began = time.monotonic()
        piece.madvise(MADV_POPULATE_WRITE)
        costs.append((time.monotonic() - began) * 1e6 / (PIECE // mmap.PAGESIZE))
        pieces.append(piece)
    return sorted(costs)


def main():
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]))
    elif sys.argv[1:] == ["--measure"]:
        costs = measure()
        at = [costs[min(len(costs) - 1, len(costs) * share // 100)] for share in (10, 50, 90)]
        print(f"first touch of {len(costs) * PIECE >> 20} MiB, us a page: p10 {at[0]:.1f}, p50 {at[1]:.1f}, p90 {at[2]:.1f}; a host "
              f"beneath {'takes' if host_takes_memory() else 'does not take'} free memory back")
    else:
        sys.exit("usage: warm.py --measure | --serve BYTES")


if __name__ == "__main__":
    main()
