# SPDX-License-Identifier: Apache-2.0
"""The guest with servers and the world around it, by themselves: without an engine, on one host.

What the tests of output commit stand on must be known to work, and its checks must be known to fail.
"""
import os
import socket
import time

import clients
import services
from qmp import Qmp
from services import Disk
from understudy_test import Process, check, wait_for

QUIET = "us.mem=4M us.rate=200 us.check=2000"


def content(run, name):
    return os.path.join(services.image(run.build), name)


def guest(run, roles, *disks, load=QUIET, **options):
    pair = run.pair(machine="q35", memory=256, load=load, services=roles, disks=disks, **options)
    return pair.start_guest()


def wait_last(pair, client, number, seconds=40):
    wait_for(f"{number} acknowledged writes", seconds, lambda: client.error or client.last() >= number, pair.story)
    client.check()


def power_off(pair):
    """As a power cut: no word to the guest."""
    pair.qemu.kill()
    os.unlink(pair.path("alpha.serial"))


def check_file_system(pair, device="/dev/vda"):
    with pair.shell() as shell:
        shell("sync; umount /data")
        shell(f"e2fsck -fn {device}")


def test_redis(run):
    """A client's acknowledged values outlive a power cut; the file system and Redis' own check are content."""
    pair = guest(run, "redis", Disk(content(run, "empty.img")), network="tap").wait_ready("redis")
    client = clients.Redis(run.outside().name).start()
    wait_last(pair, client, 100)
    check(run.outside().port_of_guest() == "alpha", "the switch does not see the guest behind alpha", pair.story)
    power_off(pair)
    pair.start_guest().wait_ready("redis")
    again = clients.Redis(run.outside().name, after=client).start()
    wait_last(pair, again, client.last() + 20)
    verified = again.stop().verify()
    with pair.shell() as shell:
        shell("redis-cli shutdown")
        shell("cd /data/appendonlydir && redis-check-aof appendonly.aof.manifest", seconds=20)
    check_file_system(pair)
    return f"{verified} values"


def test_postgres(run):
    """A client's acknowledged rows are there; PostgreSQL's own checks and the file system's are content."""
    pair = guest(run, "postgres", Disk(content(run, "data.img")), network="tap").wait_ready("postgres")
    client = clients.Postgres(run.outside().name).start()
    wait_last(pair, client, 50)
    client.stop()
    verified = client.verify()
    with pair.shell() as shell:
        shell("pg_amcheck -h /tmp -U postgres -d postgres --heapallindexed -t numbers", seconds=60)
        shell("kill -INT $(head -n 1 /data/pg/postmaster.pid)")
        wait_for("end of PostgreSQL", 20, lambda: "ended postgres" in pair.serial("alpha").text(), pair.story)
        shell("pg_checksums --check -D /data/pg", seconds=60)
    check_file_system(pair)
    return f"{verified} rows, gap {client.gap()[0] * 1000:.0f} ms"


def test_client_finds_a_rollback(run):
    """The Redis client fails when an acknowledged value is taken back behind its back."""
    pair = guest(run, "redis", Disk(content(run, "empty.img")), network="tap").wait_ready("redis")
    client = clients.Redis(run.outside().name).start()
    wait_last(pair, client, 20)
    with pair.shell() as shell:
        shell("redis-cli decr sequence")
    wait_for("the client's complaint", 20, lambda: client.error, pair.story)
    check(isinstance(client.error, clients.Contradiction), f"the client says {client.error!r}")


def test_fio(run):
    """fio verifies a raw SCSI disk (qcow2) again and again, and says so when a block changes underneath."""
    pair = guest(run, "fio", Disk(mib=16, format="qcow2", bus="virtio-scsi"),
                 load=f"{QUIET} us.fiodev=/dev/sda us.fiosize=4M")
    serial = pair.serial("alpha")
    wait_for("two passes of fio", 40, lambda: serial.corrupt() or "fio: pass 2 ok" in serial.text(), pair.story)
    check(not serial.corrupt(), f"fio: {serial.corrupt()}", pair.story)
    with pair.shell() as shell:
        shell("while pidof fio; do dd if=/dev/zero of=/dev/sda bs=64k seek=8 count=8 conv=notrunc oflag=direct; done"
              " >/dev/null 2>&1 &")
    wait_for("fio's complaint", 40, serial.corrupt, pair.story)
    check(serial.corrupt().startswith("CORRUPT fio"), f"not fio's complaint: {serial.corrupt()}")


def test_counter(run):
    """The counter arrives by datagram and by stream, in order, without a disk."""
    pair = guest(run, "counter", network="tap")
    observer = clients.Observer(run.outside().name).start()
    wait_for("500 values by both ways", 20,
             lambda: observer.error or min(observer.highest.values()) > 500, pair.story)
    observer.stop()
    check(not observer.went_back, f"values came again: {observer.went_back[:3]}")
    # Nobody outside may know more than the guest has in its memory.
    offset = pair.probe.partition(":")[2]
    with Qmp(pair.path("alpha.qmp")) as qmp:
        known = int(qmp.hmp(f"xp /1gx {offset}").split(":")[1], 16)
    check(known >= max(observer.highest.values()), f"seen {observer.highest}, the guest knows {known}")
    return f"gaps {observer.gap('udp')[0] * 1000:.0f} and {observer.gap('tcp')[0] * 1000:.0f} ms"


def test_takes_the_place_of_another(run):
    """A second guest with the same MAC and address, on beta, is found there; and it is seen to know less."""
    pair = guest(run, "counter", network="tap")
    world = run.outside()
    observer = clients.Observer(world.name, tcp=False).start()
    wait_for("500 values from alpha", 20, lambda: observer.error or observer.highest["udp"] > 500, pair.story)
    check(world.port_of_guest() == "alpha", "the switch does not see the guest behind alpha", pair.story)
    power_off(pair)
    time.sleep(0.1)
    check(not observer.went_back, f"values came again: {observer.went_back[:3]}")
    beta = Process("beta's QEMU", [word.strip("'") for word in pair.qemu_command("beta")], pair.log("beta-qemu"),
                   run.network("beta"))
    wait_for("an older value from beta", 40, lambda: observer.error or observer.went_back, pair.story)
    observer.stop()
    check(world.port_of_guest() == "beta", "the switch does not see the guest behind beta", pair.story)
    beta.kill()


def test_dgram(run):
    """With -netdev dgram the guest's frames come out of a socket, whole, one each."""
    pair = run.pair(memory=256, load=QUIET, services="idle", network="dgram", boot=True)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    own.bind(pair.devices.socket_path("alpha", "own"))
    own.settimeout(40)
    pair.start_guest()
    frame = own.recv(65536)
    check(frame[6:12].hex(":") == services.MAC, f"a frame from {frame[6:12].hex(':')}")
    own.close()
