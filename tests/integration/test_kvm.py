# SPDX-License-Identifier: Apache-2.0
"""Guests of our own VMM: protected, taken over, moved; its confinement and its control socket."""
import signal

from kvm import KvmPair
from understudy_test import check, wait_for


def take_over(run, smp):
    pair = KvmPair(run, smp=smp, takeover="auto", interval="20ms").up()
    pair.wait_epochs(20)
    stop_watching = pair.watch()
    pair.wait_ticks("alpha", 2)
    pair.kill_primary()
    stop_watching()
    check(pair.acknowledged > 0, "no checkpoint was acknowledged before the kill", pair.story)
    pair.check_taken_over()
    return f"takeover {pair.status('beta')['takeover_ms']['total']:.1f} ms"


def test_takeover_1_cpu(run):
    return take_over(run, 1)


def test_takeover_2_cpus(run):
    return take_over(run, 2)


def test_takeover_4_cpus(run):
    return take_over(run, 4)
