# SPDX-License-Identifier: Apache-2.0
"""The bare guest itself, under QEMU's TCG: that it boots, that its checks pass, and that they fail when they must."""
import os
import re
import socket
import struct
import time

import processes
from bare import CPU_FIELDS, Bare, Debugger
from understudy_test import Skip, check, wait_for

PAGE = 4096


def boots(run, machine, cpus):
    bare = Bare(run, "mem=512K rate=400 check=4000", machine=machine, cpus=cpus).start()
    bare.wait_ready()
    bare.wait_passes(2)
    bare.wait("work on every vCPU", lambda: all(bare.cpu(n)["writes"] and bare.cpu(n)["checks"] and bare.cpu(n)["timer"]
                                                for n in range(cpus)))
    header = bare.header()
    check(header["magic"].to_bytes(8, "little") == b"UDYGUEST", f"magic {header['magic']:x}")
    check(header["version_cpus"] == cpus << 32 | 1, f"version and cpus {header['version_cpus']:x}")
    check(header["pages"] == header["low"] == 128, f"{header}")
    first, _ = bare.serial().ticks()[-1]
    wait_for("the counter to grow", 10, lambda: bare.header()["counter"] > first, bare.story)
    check(bare.serial().probe() == f"pc.ram:0x{bare.layout['HEADER'] + 16:x}", f"probe {bare.serial().probe()}")


def test_boots_1(run):
    boots(run, "q35", 1)


def test_boots_2(run):
    boots(run, "microvm", 2)


def test_boots_4(run):
    boots(run, "q35", 4)


def test_patterns(run):
    """Whatever is written in whichever order, the guest finds it again."""
    guests = []
    for order, unit, data in (("random", "page", "random"), ("sequential", "page", "text"), ("hot", "line", "random"),
                              ("random", "line", "text"), ("hot", "page", "zero"), ("sequential", "line", "zero")):
        guests.append(Bare(run, f"mem=128K rate=400 check=4000 order={order} write={unit} data={data} hot=4 fill=on",
                           name=f"{order}-{unit}-{data}").start())
    for bare in guests:
        bare.wait_passes(3)
        bare.wait("200 writes", lambda: bare.cpu(0)["writes"] > 200)


def test_memory_beyond_4_gib(run):
    """The area goes on beyond the hole."""
    bare = Bare(run, "mem=30M rate=1000 check=max write=line oracle=on", below=24).start()
    bare.wait_passes(2)
    header = bare.header()
    check(0 < header["low"] < header["pages"] == 30 * 256, f"{header}")
    last = header["pages"] - 1
    check(bare.page_address(last) == (4 << 30) + (last - header["low"]) * PAGE, f"{header}")
    bare.wait("a write beyond", lambda: any(frame >= 1 << 20 for frame in bare.written(0, 0, bare.cpu(0)["done"])))
    with bare.stopped():
        bare.write(bare.page_address(last) + 8, b"x")
    found = bare.wait_corrupt()
    check(f"page {last} at 0x{bare.page_address(last):x}: " in found, found)


def result(run, name, cmdline, cpus=2, seconds=20):
    return Bare(run, f"mem=128K steps=600 {cmdline}", name=name, cpus=cpus).start().wait_result(seconds)


def test_result_is_the_same(run):
    """What is computed depends on what is written, not on when."""
    wanted = result(run, "first", "rate=max check=max")
    check(result(run, "second", "rate=max check=max") == wanted, "two runs differ")
    check(result(run, "slow", "rate=600 check=100") == wanted, "a slow run differs")
    check(result(run, "quiet", "rate=max check=0 irq=0 oracle=on") == wanted, "without timer and checks it differs")
    check(result(run, "text", "rate=max data=text") != wanted, "other data computes the same")
    check(result(run, "filled", "rate=max fill=on") != wanted, "a page that was filled computes the same")


def test_on_kvm(run):
    """The same image, the same result, whatever executes it."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")
    cmdline = "mem=64K steps=20 rate=max check=100 write=line irq=20"
    wanted = Bare(run, cmdline, name="tcg", cpus=2).start().wait_result()
    bare = Bare(run, cmdline, name="kvm", cpus=2, accel="kvm").start()
    wait_for("a word", 60, lambda: bare.serial().text() or not bare.process.running(), bare.story)
    if not bare.serial().text():
        raise Skip(processes.tail(bare.path("log"), 1).strip())
    check(bare.wait_result(60) == wanted, "KVM computes something else")


def test_saved_and_restored(run):
    """QEMU's own migration at random instants: the computation ends as if nothing had been."""
    cmdline = "mem=128K steps=1000 rate=1000 check=2000"
    wanted = Bare(run, cmdline, name="whole", cpus=2).start().wait_result()
    at = Bare(run, cmdline, name="life0", cpus=2).start()
    for life in range(1, 4):
        at.wait("work", lambda: at.cpu(0)["writes"] and at.serial().ticks())
        time.sleep(run.random.uniform(0, 0.3))
        state = at.path("state")
        at.qmp("stop")
        at.qmp("migrate", uri=f"exec:cat >{state}")
        wait_for("a saved guest", 20, lambda: at.qmp("query-migrate").get("status") == "completed", at.story)
        at.process.kill()
        at = Bare(run, cmdline, name=f"life{life}", cpus=2, arguments=["-incoming", f"exec:cat {state}"]).start()
        wait_for("a restored guest", 20, lambda: at.qmp("query-status")["status"] != "inmigrate", at.story)
        at.qmp("cont")
    check(at.wait_result() == wanted, "saved and restored, it computes something else")


def damaged(run, name, damage, cmdline="", cpus=1, wanted=()):
    """`damage(bare)` while the guest stands still; what it says of it must have all the words of `wanted`."""
    bare = Bare(run, f"mem=128K fill=on rate=0 check=max {cmdline}", name=name, cpus=cpus,
                arguments=["-gdb", f"unix:{run.directory}/{name}.gdb,server=on,wait=off"]).start()
    bare.wait_passes(1)
    bare.wait("interrupts", lambda: bare.cpu(0)["timer"] > 2)
    with bare.stopped():
        damage(bare)
    found = bare.wait_corrupt()
    check(all(word in found for word in wanted), f"{name}: {found}")
    ticks = len(bare.serial().ticks())
    time.sleep(0.3)
    check(len(bare.serial().ticks()) == ticks, f"{name}: it ticks on after it found damage", bare.story)


def test_finds_a_flipped_bit(run):
    def flip(bare):
        at = bare.page_address(7) + 1000
        bare.write(at, bytes([bare.read(at, 1)[0] ^ 0x10]))
    damaged(run, "flip", flip, wanted=("page 7 ", "torn", "word 125"))
    damaged(run, "flip-line", flip, "write=line", wanted=("page 7 ", "word 125"))


def test_finds_a_stale_page(run):
    """An old page under a new entry of the table, and the reverse; also by the vCPU that did not write it."""
    damaged(run, "stale", lambda bare: bare.write(bare.page_address(31), bytes(PAGE)), cpus=2,
            wanted=("page 31 ", "stale", "iteration 1 wanted, 0 found"))
    damaged(run, "table", lambda bare: bare.write(bare.entry_address(3), (4).to_bytes(8, "little")),
            wanted=("page 3 ", "stale", "iteration 2 wanted, 1 found"))


def test_finds_a_torn_page(run):
    damaged(run, "torn", lambda bare: bare.write(bare.page_address(9) + 2048, bytes(2048)),
            wanted=("page 9 ", "torn", "iteration 1 wanted, 1 found"))


def test_finds_lost_state_of_a_vcpu(run):
    """Counts that went back, registers that nothing else would miss, interrupts that no longer come."""
    def forget(field):
        return lambda bare: bare.write(bare.layout["CPUS"] + 8 * CPU_FIELDS.index(field), bytes(8))

    def register(name, value):
        def write(bare):
            debugger = Debugger(bare.path("gdb"))
            debugger.write(name, value)
            debugger.close()
        return write
    damaged(run, "timer", forget("timer"), "irq=20", wanted=("vcpu 0", "interrupts of its timer"))
    damaged(run, "writes", forget("writes"), "rate=100", wanted=("vcpu 0", "; 0 and 0x"))
    damaged(run, "vector", register("xmm3", b"\x5a" * 16), wanted=("vcpu 0", "vector register"))
    damaged(run, "deaf", register("eflags", (2).to_bytes(4, "little")), wanted=("vcpu 0", "its timer interrupts no longer"))


def test_a_page_and_its_entry_rolled_back(run):
    """Old page, equally old entry: no check of memory can see that. The result does."""
    cmdline = "mem=128K steps=800 rate=600 check=1000"
    wanted = Bare(run, cmdline.replace("rate=600", "rate=max"), name="whole").start().wait_result()
    bare = Bare(run, cmdline, name="rolled").start()
    bare.wait("page 5 to be written", lambda: bare.read(bare.entry_address(5), 8) != bytes(8))
    with bare.stopped():
        old = bare.read(bare.entry_address(5), 8), bare.read(bare.page_address(5), PAGE)
    bare.wait("page 5 to be written again", lambda: bare.read(bare.entry_address(5), 8) not in (bytes(8), old[0]))
    with bare.stopped():
        bare.write(bare.entry_address(5), old[0])
        bare.write(bare.page_address(5), old[1])
    check(bare.wait_result() != wanted, "a page was rolled back, and the result is the same")


def test_oracle(run):
    """Between two stops: each page that changed is in a ring, and each page that a ring says was written has changed."""
    bare = Bare(run, "mem=512K rate=2000 check=0 oracle=on", cpus=2).start()
    bare.wait_ready()
    header = bare.header()
    first = header["area"] // PAGE

    def look():
        cpus = [bare.cpu(n) for n in range(2)]
        table = [bare.read(bare.entry_address(n), 8) for n in range(header["pages"])]
        pages = [bare.read(bare.page_address(n), PAGE) for n in range(header["pages"])]
        return cpus, table, pages
    before = None
    seen = 0
    for _ in range(8):
        with bare.stopped():
            now = look()
            if before:
                must = {page for n in range(2) for page in bare.written(n, before[0][n]["begun"], now[0][n]["done"])}
                may = {page for n in range(2) for page in bare.written(n, before[0][n]["done"], now[0][n]["begun"])}
                changed = {first + n for n in range(header["pages"])
                           if before[1][n] != now[1][n] or before[2][n] != now[2][n]}
                check(must <= changed <= may, f"in a ring, not changed: {must - changed}; changed, in no ring: {changed - may}")
                seen += len(must)
        before = now
        time.sleep(run.random.uniform(0.02, 0.1))
    check(seen > 20, f"only {seen} writes were seen")


def test_counter_by_network(run):
    """Frames that a stranger can read, none twice and none left out, and the device's interrupts come."""
    host, port = run.directory + "/net.host", run.directory + "/net.guest"
    outside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    outside.bind(host)
    outside.settimeout(0.2)
    deadline = time.monotonic() + 30
    bare = Bare(run, "mem=128K tick=10 steps=2000 net=0xfeb00e00:23", machine="microvm,ioapic2=off", arguments=[
        "-global", "virtio-mmio.force-legacy=false", "-device", "virtio-net-device,netdev=net,mac=52:54:00:01:02:03",
        "-netdev", f"dgram,id=net,local.type=unix,local.path={port},remote.type=unix,remote.path={host}"]).start()
    values = []
    while bare.process.running():
        try:
            frame = outside.recv(2048)
        except TimeoutError:
            check(not bare.serial().corrupt() and time.monotonic() < deadline, "no more frames", bare.story)
            continue
        check(frame[:14] == b"\xff" * 6 + b"RT\0\1\2\3\x08\0", f"frame {frame.hex()}")
        header, udp, payload = frame[14:34], frame[34:42], frame[42:]
        total = sum(struct.unpack(">10H", header))
        check((total & 0xffff) + (total >> 16) == 0xffff, f"the sum of {header.hex()}")
        check(struct.unpack(">HHHH", udp) == (7001, 7000, 8 + len(payload), 0), f"udp {udp.hex()}")
        check(struct.unpack(">BBH", header[:4]) == (0x45, 0, 28 + len(payload)), f"ip {header.hex()}")
        values.append(int(re.fullmatch(rb"counter (\d+)\n", payload).group(1)))
    bare.wait_result()
    said = [counter for counter, _ in bare.serial().ticks()]
    check(len(values) > 50 and values == said[:len(values)], f"sent {values}, said {said}")
    sent, used, dropped, interrupts = map(int, re.findall(
        r"^net sent (\d+) used (\d+) dropped (\d+) interrupts (\d+)", bare.serial().text(), re.M)[-1])
    check(dropped == 0 and sent - used <= 1 and interrupts > 0, f"{sent} {used} {dropped} {interrupts}")


def test_network_interrupts_lost(run):
    """A line that leads nowhere, as after an IO APIC that was not restored."""
    bare = Bare(run, "mem=128K tick=5 net=0xfeb00e00:9", machine="microvm,ioapic2=off", arguments=[
        "-global", "virtio-mmio.force-legacy=false", "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net"])
    found = bare.start().wait_corrupt()
    check("CORRUPT network: 64 requests done without an interrupt" in found, found)


def test_disk(run):
    """The disk of another VMM does what its driver wants, and one that somebody spoils is found."""
    image = os.path.join(run.directory, "disk.img")
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    bare = Bare(run, "mem=128K tick=20 disk=0xfeb00e00:23 disk_rate=max disk_blocks=16 disk_writes=500",
                machine="microvm,ioapic2=off", arguments=[
                    "-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=disk",
                    "-drive", f"if=none,id=disk,format=raw,file={image},file.locking=off"]).start()
    done = r"^disk requests (\d+) writes (\d+) zeroes (\d+) reads (\d+) flushes (\d+) interrupts (\d+)\r?$"
    bare.wait("500 changes and two passes of reads since",
              lambda: len(re.findall(r"^disk pass", bare.serial().text(), re.M)) > 2 and
              any(int(words[1]) + int(words[2]) == 500 for words in re.findall(done, bare.serial().text(), re.M)))
    words = [int(word) for word in re.findall(done, bare.serial().text(), re.M)[-1]]
    check(all(words), f"never: {words}")
    with open(image, "r+b") as file:
        file.seek(5 * PAGE + 1000)
        file.write(b"spoilt")
    found = bare.wait_corrupt()
    check("CORRUPT disk: block 5 is torn" in found, found)


def test_refuses(run):
    """What it cannot do, it names."""
    for name, cmdline, cpus, wanted in (("word", "mem=1M rate=fast", 1, "word rate=fast"),
                                        ("memory", "mem=80M", 1, "mem=83886080 is too much"),
                                        ("avx", "avx=on", 1, "has no AVX"),
                                        ("net", "net=0xfeb00e00:23", 1, "no virtio network device"),
                                        ("vcpu", "mem=1M cpus=2", 1, "vcpu 1 of cpus=2 does not start")):
        bare = Bare(run, cmdline, name=name, cpus=cpus).start()
        said = bare.wait_corrupt()
        check("FATAL" in said and wanted in said, f"{name}: {said}")
