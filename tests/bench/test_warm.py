# SPDX-License-Identifier: Apache-2.0
"""Free memory that is held, and let go of as others want theirs."""
import os
import tempfile
import time
import unittest
from unittest import mock

from bench_test import SOURCE  # finds bench/ for the next one

import warm

PIECE = warm.PIECE


class Machine:
    """Memory that somebody else can take, too; `scraps` of what is free are no whole blocks."""

    def __init__(self, free, scraps=0):
        self.all, self.scraps, self.others, self.hoard = free, scraps, 0, None

    def free(self):
        free = self.all - self.others - self.hoard.bytes()
        return free, max(free - self.scraps, 0), 0


class Piece:
    def close(self):
        pass


class Holding(unittest.TestCase):
    def hoard(self, free, most=1 << 62, scraps=0):
        machine = Machine(free, scraps)
        machine.hoard = warm.Hoard(most, machine.free)
        return machine, machine.hoard

    @mock.patch.object(warm, "touched_piece", Piece)
    def test_nearly_all_is_held_and_given_as_wanted(self):
        machine, hoard = self.hoard(4 << 30, scraps=1 << 30)
        hoard.fill()
        self.assertTrue(machine.free()[1] < PIECE)
        full = hoard.bytes()
        hoard.give_way()
        before = hoard.bytes()
        self.assertTrue(warm.READY <= machine.free()[1] < warm.READY + PIECE)
        hoard.give_way()
        self.assertEqual(hoard.bytes(), before)
        machine.others = 1 << 30
        hoard.give_way()
        self.assertTrue(warm.READY <= machine.free()[1] < warm.READY + PIECE)
        machine.others = 8 << 30
        hoard.give_way()
        self.assertEqual(hoard.bytes(), 0)
        machine.others = 0
        hoard.fill()
        self.assertEqual(hoard.bytes(), full)

    @mock.patch.object(warm, "touched_piece", Piece)
    def test_some_memory_stays_free_whatever_its_blocks(self):
        machine, hoard = self.hoard(4 << 30)
        hoard.fill()
        self.assertTrue(warm.FREE_MIN <= machine.free()[0] < warm.FREE_MIN + PIECE)
        before = hoard.bytes()
        hoard.give_way()
        self.assertEqual(hoard.bytes(), before)

    def test_free_memory(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
                       "Node 0, zone   Normal   4029   0   0    0   0   0   0    1    126    261   4537 \n")
            file.flush()
            blocks = 261 * (2 << 20) + 4537 * (4 << 20)
            self.assertEqual(warm.free_memory(file.name), (blocks + 4029 * 4096 + (512 << 10) + 126 * (1 << 20), blocks,
                                                           (2 << 20) + 3 * (4 << 20)))
        free, blocks, low = warm.free_memory()
        self.assertTrue(0 <= blocks <= free and low >= 0)

    def test_low_zones_are_let_go_of_last(self):
        high, low, kept = [1 << 30], [1 << 30], 128 << 20  # free, and what the kernel keeps of the low ones

        def take():
            zone = high if high[0] >= PIECE else low
            if zone is high or low[0] >= kept + PIECE:
                zone[0] -= PIECE
                return mock.Mock(close=lambda: zone.__setitem__(0, zone[0] + PIECE))
            return mock.Mock()  # out of scraps
        hoard = warm.Hoard(1 << 62, lambda: (high[0] + (1 << 30), high[0], low[0]))
        with mock.patch.object(warm, "touched_piece", take):
            for _ in range(3):  # what was had again is not older than what lies low
                hoard.fill()
                self.assertEqual((high[0], low[0]), (0, kept))
                self.assertTrue(len(hoard.pieces) * PIECE >= 1 << 30)
                hoard.give_way()
                self.assertEqual((high[0], low[0]), (warm.READY, kept))

    def test_a_small_machine_has_no_other_zones(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("Node 0, zone    DMA32      1      0      0      0      0      0      0      0      0      2      3 \n")
            file.flush()
            self.assertEqual(warm.free_memory(file.name), (4096 + 16 * (1 << 20), 16 * (1 << 20), 0))

    @mock.patch.object(warm, "touched_piece", Piece)
    def test_no_more_than_allowed(self):
        _, hoard = self.hoard(4 << 30, 3 * PIECE + 1)
        hoard.fill()
        self.assertEqual(hoard.bytes(), 3 * PIECE)

    def test_who_takes_memory_back(self):
        with tempfile.TemporaryDirectory() as devices:
            self.assertFalse(warm.host_takes_memory(devices))
            for name, kind, bits in ("virtio0", "0x0001", "1" * 64), ("virtio1", "0x0005", "01100" + "0" * 59):
                os.mkdir(f"{devices}/{name}")
                for file, text in ("device", kind), ("features", bits):
                    with open(f"{devices}/{name}/{file}", "w") as out:
                        out.write(text + "\n")
            self.assertFalse(warm.host_takes_memory(devices))
            with open(f"{devices}/virtio1/features", "w") as out:
                out.write("011001" + "0" * 58 + "\n")
            self.assertTrue(warm.host_takes_memory(devices))

    def test_the_process_holds_and_ends(self):
        self.assertEqual(os.path.dirname(os.path.dirname(os.path.abspath(warm.__file__))), SOURCE)
        nobody = warm.Keeper(False)
        self.assertEqual(nobody.settle(), 0)
        nobody.close()
        keeper = warm.Keeper(True, PIECE)
        pid = keeper.process.pid
        held = keeper.settle()
        self.assertIn(held, (0, PIECE))  # a machine that is full has none to hold
        if held:
            with open(f"/proc/{pid}/statm") as file:
                self.assertGreater(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE"), PIECE)
        keeper.close()
        self.assertFalse(os.path.exists(f"/proc/{pid}"))

    def test_one_that_was_killed_is_not_missed(self):
        keeper = warm.Keeper(True, PIECE)
        keeper.settle()
        keeper.process.kill()
        while keeper.process.poll() is None:
            time.sleep(0.01)
        self.assertEqual(keeper.settle(), 0)
        keeper.close()


if __name__ == "__main__":
    unittest.main()
