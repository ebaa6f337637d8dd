# SPDX-License-Identifier: Apache-2.0
"""Real servers whose host is killed again and again: one TCP connection, nothing that was acknowledged is lost.

The guest wanders: its host is killed, the other takes over, is protected by a fresh standby where the first was,
is killed, and so on. The client outside never connects anew.
"""
import os
import signal
import time

import clients
import services
from services import Disk
from understudy_test import check, wait_for

QUIET = "us.mem=4M us.rate=200 us.check=2000"


class Wanderer:
    """A pair whose primary changes sides."""

    def __init__(self, run, roles, content, **keys):
        self.run = run
        disk = Disk(os.path.join(services.image(run.build), content))
        self.pair = run.pair(machine="q35", memory=256, load=f"{QUIET} us.fsync=always", services=roles,
                             network="tap", disks=[disk], takeover="auto", interval="25ms", **keys)
        self.at, self.other = "alpha", "beta"
        self.pair.start_guest().wait_ready(roles)

    def protect(self):
        self.pair.standby(self.other)
        self.pair.protect(self.at)

    def kill(self):
        """Power off the host of the guest; returns when the other runs it."""
        pair = self.pair
        pid = pair.status(self.at)["guest"]["pid"]
        os.kill(pid, signal.SIGKILL)
        pair.engines[self.at].kill()
        pair.wait_state(self.other, "active", seconds=30)
        self.at, self.other = self.other, self.at

    def settle(self):
        """The engine that took over ends; the guest goes on without one."""
        self.run.us("stop", self.pair.config(self.at), "--host", self.at)
        self.pair.engines[self.at].wait(20)


def wander(run, wanderer, client, kills):
    gaps = []
    for _ in range(kills):
        wanderer.protect()
        before = client.last()
        wait_for("writes under protection", 30, lambda: client.error or client.last() > before + 3, wanderer.pair.story)
        time.sleep(run.random.uniform(0.2, 1.0))
        client.check()
        killed = time.monotonic()
        wanderer.kill()
        last = client.last()
        wait_for("the connection goes on", 30, lambda: client.error or client.last() > last + 3, wanderer.pair.story)
        client.check()
        gaps.append(client.gap(killed - 0.5)[0])
        check(run.outside().port_of_guest() == wanderer.at, "the switch sees the guest elsewhere", wanderer.pair.story)
        wanderer.settle()
    gaps.sort()
    return f"{kills} kills, {client.last()} writes, gap median {gaps[len(gaps) // 2]:.2f} s, longest {gaps[-1]:.2f} s"


def check_disk(wanderer, device="/dev/vda"):
    with wanderer.pair.shell(wanderer.at) as shell:
        shell("sync; umount /data", seconds=60)
        shell(f"e2fsck -fn {device}", seconds=60)


def redis(run, kills, **keys):
    wanderer = Wanderer(run, "redis", "empty.img", **keys)
    client = clients.Redis(run.outside().name).start()
    note = wander(run, wanderer, client, int(os.environ.get("UNDERSTUDY_KILLS", kills)))
    client.stop()
    client.verify()
    with wanderer.pair.shell(wanderer.at) as shell:
        shell("redis-cli shutdown", seconds=60)
        shell("cd /data/appendonlydir && redis-check-aof appendonly.aof.manifest", seconds=60)
    check_disk(wanderer)
    return note


def postgres(run, kills, **keys):
    wanderer = Wanderer(run, "postgres", "data.img", **keys)
    client = clients.Postgres(run.outside().name).start()
    note = wander(run, wanderer, client, int(os.environ.get("UNDERSTUDY_KILLS", kills)))
    client.stop()
    client.verify()
    with wanderer.pair.shell(wanderer.at) as shell:
        shell("pg_amcheck -h /tmp -U postgres -d postgres --heapallindexed -t numbers", seconds=60)
        shell("kill -INT $(head -n 1 /data/pg/postmaster.pid)")
        wait_for("end of PostgreSQL", 20, lambda: "ended postgres" in wanderer.pair.serial(wanderer.at).text(),
                 wanderer.pair.story)
        shell("pg_checksums --check -D /data/pg", seconds=60)
    check_disk(wanderer)
    return note


# Over twenty kills in all, in tests that stay within their time on a busy machine; those of test_output.py and
# test_disks.py make more than thirty. UNDERSTUDY_KILLS asks for more.
def test_redis(run):
    return redis(run, 6)


def test_redis_eager(run):
    return redis(run, 6, eager="yes")


def test_postgres(run):
    return postgres(run, 5)


def test_postgres_eager(run):
    return postgres(run, 5, eager="yes")
