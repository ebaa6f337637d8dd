# SPDX-License-Identifier: Apache-2.0
"""Guests of our own VMM: protected, taken over, moved; the VMM's confinement and its control socket."""
import errno
import os
import re
import signal
import time

from kvm import WORDS, Control, KvmPair, need_kvm, program
from processes import Process, tail
from test_faults import PRIMARY
from test_migrate import migrate
from test_reprotect import Watch, check_runs, kill_host
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


def test_soak(run):
    """Killed at a random moment. UNDERSTUDY_SOAK raises the number of rounds."""
    rounds = int(os.environ.get("UNDERSTUDY_SOAK", "2"))
    for number in range(rounds):
        pair = KvmPair(run, tag=f"soak{number}", smp=run.random.choice([1, 2]), takeover="auto",
                       interval=run.random.choice(["5ms", "20ms", "50ms"])).up()
        stop_watching = pair.watch()
        pair.wait_epochs(run.random.randrange(1, 60))
        pair.kill_primary()
        stop_watching()
        pair.check_taken_over()
        kill_host(pair, "beta")
    return f"{rounds} rounds, seed {run.seed}"


def test_one_millisecond(run):
    """Checkpoints as often as the configuration allows."""
    words = "block=ram mem=2M rate=max check=100 write=line order=sequential"
    pair = KvmPair(run, words=words, interval="1ms", pause_share="90", takeover="auto").up()
    began, first = time.monotonic(), pair.status("alpha")["checkpoints"]
    status = pair.wait_epochs(400)
    rate = (status["checkpoints"] - first) / (time.monotonic() - began)
    pair.wait_ticks("alpha", 2)
    stop_watching = pair.watch()
    pair.kill_primary()
    stop_watching()
    pair.check_taken_over()
    return (f"{rate:.0f} checkpoints a second of {status['dirty_pages']['p50']:.0f} pages, pause p50 "
            f"{status['pause_ms']['p50']:.2f} ms, takeover {pair.status('beta')['takeover_ms']['total']:.1f} ms")


def pauses(run, interval, epochs):
    """What status says of pauses under a guest that writes as fast as it can, each page once in a round."""
    words = "block=ram mem=16M rate=max check=0 irq=0 write=line order=sequential"
    pair = KvmPair(run, words=words, memory=32, interval=interval, pause_share="90",
                   pause_budget="100ms", pause_limit="1s").up()  # however many pages: no live rounds before
    status = pair.wait_epochs(epochs, seconds=100)
    return (f"every {interval}: {status['dirty_pages']['p50']:.0f} pages, pause p50 {status['pause_ms']['p50']:.2f} ms, "
            f"parts {status['pause_parts_p50_ms']}; {stood_still(pair)}")


def stood_still(pair):
    """What the VMM says when its engine has left: how long the guest did not run."""
    engine = pair.engines["alpha"]
    engine.signal(signal.SIGTERM)
    engine.wait(20)

    def line():
        with open(pair.log("alpha-vmm")) as log:
            return re.search("the guest (stood still .*)", log.read())
    return wait_for("the VMM says how long its guest stood still", 10, line, pair.story).group(1)


def test_pause_few_pages(run):
    return pauses(run, "50ms", 100)


def test_pause_many_pages(run):
    return pauses(run, "400ms", 40)


def test_vmm_crashes(run):
    """The VMM alone dies: its engine knows for certain and says so; nobody waits for silence."""
    pair = KvmPair(run, takeover="auto", detect="20s").up()
    pair.wait_epochs(10)
    pair.qemu.kill()
    pair.check_taken_over(seconds=10)


def test_guest_ends(run):
    """A guest that ended itself must not be brought back."""
    # Held, its last words would not be let out: no standby knows of them.
    pair = KvmPair(run, words=WORDS + " steps=400", more=("--no-reboot",), takeover="auto", net_gate="none").up()
    wait_for("the guest ends itself", 80, lambda: not pair.qemu.running(), pair.story, every=0.1)
    check(pair.qemu.popen.returncode == 0, f"the VMM ended with {pair.qemu.popen.returncode}", pair.story)
    check("result " in pair.serial("alpha").text(), "the guest said no result", pair.story)
    pair.engines["alpha"].wait(20)
    check(pair.ticking(2) == [], "after its end the guest still runs", pair.story)
    check((pair.status("beta") or {}).get("state") not in ("active", "taking-over"),
          "the standby took over a guest that had ended", pair.story)


def lives(pair, host):
    return pair.serial(host).text().count("ready writers ")


def test_guest_resets_itself(run):
    """It boots again in the same VMM and stays protected; after a takeover it does so at its new place."""
    words = "block=ram mem=256K rate=100 check=200 tick=100 steps=15 net=0xd0000000:5"
    pair = KvmPair(run, words=words, smp=2, kernel="bare-guest.bzImage", takeover="auto", interval="50ms",
                   more=("--net", "tap0"), network="tap").up()
    serial = pair.serial("alpha")
    wait_for("two resets", 60, lambda: serial.corrupt() or lives(pair, "alpha") >= 3, pair.story, every=0.1)
    check(not serial.corrupt(), f"the guest found its memory wrong: {serial.corrupt()}", pair.story)
    check(not pair.verify()["differing"], "memory differs", pair.story)
    pair.wait_epochs(5)
    pair.kill_primary()
    pair.wait_state("beta", "active", seconds=30)
    wait_for("two resets on beta", 60, lambda: pair.serial("beta").corrupt() or lives(pair, "beta") >= 2, pair.story,
             every=0.1)
    check(not pair.serial("beta").corrupt(), f"the guest on beta: {pair.serial('beta').corrupt()}", pair.story)
    results = set(re.findall(r"^result ([0-9a-f]+)", serial.text() + pair.serial("beta").text(), re.M))
    check(len(results) == 1, f"the guest's lives computed {results}", pair.story)
    check("net sent" in serial.text(), "the guest used no network device", pair.story)


def test_linux_begins(run):
    """Debian's bzImage is entered, and has read its command line. A KVM that interprets takes too long for the rest."""
    need_kvm(run)
    kernel, initrd = run.guest
    log = os.path.join(run.logs, "linux.log")
    argv = [program(run), "--kernel", kernel, "--initrd", initrd, "--memory", "128M"]
    vmm = Process("VMM with Linux", argv + ["--cmdline", "console=ttyS0 earlyprintk=ttyS0 nokaslr"], log)
    wait_for("the kernel's first words", 90,
             lambda: "KASLR disabled: 'nokaslr' on cmdline" in tail(log) or not vmm.running(), lambda: tail(log))
    check(vmm.running(), "the VMM ended", lambda: tail(log))
    vmm.signal(signal.SIGTERM)
    check(vmm.wait(10) == 0, "SIGTERM does not end it in order")


def test_engine_killed_in_the_pause(run):
    """The guest runs on by itself, and the next engine protects it."""
    pair = KvmPair(run, net_gate="none").start_guest()  # else nothing is heard of it until there is an engine
    pair.standby()
    for point in "attach", "baseline", "capture-paused", "capture-scanned", "capture-copied":
        engine = pair.protect(protected=False, faults=[f"{point}@{PRIMARY[point]}=kill"])
        engine.wait(40)
        pair.wait_ticks("alpha", 2)
    pair.protect()
    pair.wait_epochs(5)
    check(not pair.verify()["differing"], "memory differs after all", pair.story)


def test_capture_given_up(run):
    """A capture that fails after the marks were taken loses none of them."""
    pair = KvmPair(run).start_guest()
    pair.standby()
    points = "capture-paused", "capture-scanned", "capture-copied"
    pair.protect(faults=[f"{point}@{3 + at * 2}=error" for at, point in enumerate(points)])
    pair.wait_epochs(10)
    check(not pair.verify()["differing"], "memory differs", pair.story)


def test_moved_and_back(run):
    """A planned move, protection in the other direction, and the way home."""
    pair = KvmPair(run, reprotect="auto", smp=2).up()
    pair.wait_epochs(5)
    stop_watching = pair.watch()
    summary = migrate(pair, "--max-downtime", "400")
    stop_watching()
    check(summary["state"] == "moved", f"not moved: {summary}", pair.story)
    check_runs(pair, "beta", pair.acknowledged)
    pair.wait_protected("beta")
    with open(pair.log("alpha-protect")) as log:
        check("are kept, to be compared" in log.read(), "the memory that was left behind is not used", pair.story)
    watch = Watch(pair, "beta")
    pair.wait_epochs(5, host="beta")
    os.truncate(pair.path("alpha.serial"), 0)
    run.us("switchback", pair.config("beta"), "--host", "beta", network=run.network("beta"), seconds=60)
    acknowledged = watch.stop()
    check_runs(pair, "alpha", acknowledged)
    return f"down {summary['downtime_ms']:.1f} ms"


def test_killed_twice(run):
    """The guest changes hosts, gets a standby on the old host, and that host takes it over in turn."""
    pair = KvmPair(run, takeover="auto", reprotect="auto", detect="500ms").up()
    pair.wait_epochs(5)
    stop_watching = pair.watch()
    kill_host(pair, "alpha")
    stop_watching()
    check_runs(pair, "beta", pair.acknowledged)
    pair.start("run", "alpha")
    pair.wait_protected("beta")
    watch = Watch(pair, "beta")
    pair.wait_epochs(5, host="beta")
    os.truncate(pair.path("alpha.serial"), 0)
    kill_host(pair, "beta")
    check_runs(pair, "alpha", watch.stop())


def test_other_machine(run):
    """A standby whose machine is another refuses, and names the difference."""
    pair = KvmPair(run).start_guest()
    pair.memory = 32
    pair.write_config()
    pair.standby()
    pair.protect(protected=False)
    wait_for("the refusal", 20, lambda: "33554432" in pair.story() and "16777216" in pair.story(), pair.story)
    pair.wait_ticks("alpha", 2)


def test_other_features(run):
    """Hosts that hide different features of the processor are two kinds of machine."""
    pair = KvmPair(run, more=("--cpu", "-x2apic,-cx16")).start_guest()
    pair.more = ("--cpu", "-cx16")
    pair.write_config()
    pair.standby()
    pair.protect(protected=False)
    wait_for("the refusal", 20, lambda: "cpu-hides cx16 x2apic" in pair.story(), pair.story)
    pair.wait_ticks("alpha", 2)


def test_check(run):
    pair = KvmPair(run)
    found = pair.check_guest(expect=4)
    check("nobody is there" in found["findings"][0]["text"], f"found {found}")
    pair.start_guest()
    check(pair.check_guest()["protectable"], "a running guest cannot be protected")
    pair.standby()
    pair.protect()
    check("waits to be loaded" in pair.check_guest("beta", expect=4)["findings"][0]["text"], "not a standby's")
    check(pair.check_guest()["protectable"], "a protected guest is no guest")


def test_confinement(run):
    """No thread of the VMM may do more than serve the guest."""
    pair = KvmPair(run, smp=2, images=(1,)).start_guest(ticks=1)
    pid = pair.qemu.pid
    tasks = os.listdir(f"/proc/{pid}/task")
    check(len(tasks) >= 3, f"threads {tasks}")
    for task in tasks:
        with open(f"/proc/{pid}/task/{task}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        for key in "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
            check(int(status[key], 16) == 0, f"thread {task} ({status['Name']}) has {key} {status[key]}")
        check(status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", f"thread {task}: {status}")
    pair.wait_ticks("alpha", 2)


def test_dirty_log(run):
    """A dirty ring is used if it proves itself, or it is said what is wrong with it; either way nothing is missed."""
    pair = KvmPair(run, more=("--dirty-log", "auto")).up()
    pair.wait_epochs(10)
    check(not pair.verify()["differing"], "memory differs", pair.story)
    with open(pair.log("alpha-vmm")) as log:
        chosen = re.search("dirty log: (ring|bitmap; .+)", log.read())
    check(chosen, "the VMM does not say which log it uses", pair.story)
    vmm = Process("VMM with a ring", [program(run), "--kernel", "/dev/null", "--memory", "2M", "--dirty-log", "ring"],
                  pair.log("ring-vmm"))
    vmm.wait(20)
    with open(pair.log("ring-vmm")) as log:
        text = log.read()
    refused = "understudy run: dirty ring: " in text
    check(refused == (chosen.group(1) != "ring"), f"chosen was {chosen.group(1)}, and with a ring: {text}")
    return chosen.group(0)


# --- the control socket ---

def test_one_engine(run):
    """While an engine has the guest nobody else gets it, and none of its visitors harms it."""
    pair = KvmPair(run).up()
    path = pair.path("alpha.vmm")
    with Control(path) as visitor:
        code, phase, text = visitor.greet()
        check(code == -errno.EBUSY and "another engine" in text, f"a second engine: {code} {text}")
        check(visitor(Control.LOOK)[:2] in ((0, Control.RUNNING), (0, Control.PAUSED)), "a look is refused")
        for operation in (Control.PAUSE, Control.HOLD, Control.TRACK, Control.LOAD, Control.DISKS, Control.TELL):
            code, _, text = visitor(operation)
            check(code == -errno.EPERM, f"operation {operation} by a visitor: {code} {text}")
        check(visitor(Control.RETIRE)[0] == -errno.EADDRINUSE, "a guest with an engine is ended")
    for junk in b"x", b"\xff" * 40, bytes(2000), Control.HEAD.pack(Control.EVENT, 0, 0, 0, 1, 0, 0, 0, 0):
        with Control(path) as visitor:
            visitor.socket.send(junk)
            check(visitor.socket.recv(4096) == b"", f"junk {junk[:8]} is answered")
    pair.wait_epochs(5)
    pair.wait_ticks("alpha", 2)


def test_held_and_let_go(run):
    """Who hangs up lets the guest run, unless it was held for good; SIGCONT undoes that; retiring ends it."""
    pair = KvmPair(run).start_guest()
    path = pair.path("alpha.vmm")
    with Control(path) as engine:
        check(engine.greet()[0] == 0, "no engine, and HELLO is refused")
        check(engine(Control.LOAD)[0] == -errno.EINVAL, "a running guest is loaded")
        check(engine(Control.TRACK)[0] == 0 and engine(Control.PAUSE)[:2] == (0, Control.PAUSED), "not paused")
        check(engine(Control.PAUSE)[0] == -errno.EINVAL, "paused twice")
        engine.tell(Control.RELEASE)
        check(engine(Control.LOOK)[:2] == (0, Control.RUNNING), "released, and it does not run")
        check(engine(Control.RELEASE)[0] == -errno.EINVAL, "released while it runs")
        check(engine(Control.PAUSE)[:2] == (0, Control.PAUSED), "not paused again")
        check(pair.ticking(1) == [], "a paused guest runs")
    check(pair.ticking(2) == ["alpha"], "the engine hung up, and the guest stands still")
    with Control(path) as engine:
        engine.greet()
        check(engine(Control.HOLD)[:2] == (0, Control.HELD), "not held")
    check(pair.ticking(1) == [], "a guest that is held runs")
    check("SIGCONT" in pair.check_guest(expect=4)["findings"][0]["text"], "check does not say how to go on")
    pair.qemu.signal(signal.SIGCONT)
    check(pair.ticking(2) == ["alpha"], "SIGCONT does not let it run")
    with Control(path) as visitor:
        check(visitor(Control.RETIRE)[0] == -errno.EADDRINUSE, "a guest that runs is retired")
    with Control(path) as engine:
        engine.greet()
        engine(Control.HOLD)
    with Control(path) as visitor:
        check(visitor(Control.RETIRE)[0] == 0, "a guest that is held cannot be retired")
    check(pair.qemu.wait(10) == 0, "retired, and the VMM lives")


def test_bad_state(run):
    """A VMM that waits refuses what is no state, and can be asked again."""
    pair = KvmPair(run)
    argv = [word.strip("'") for word in pair.vmm_command("beta", understudy=False)] + ["--incoming"]
    vmm = Process("waiting VMM", argv, pair.log("beta-vmm"))
    wait_for("the VMM listens", 10, lambda: os.path.exists(pair.path("beta.vmm")), pair.story)
    with Control(pair.path("beta.vmm")) as engine:
        check(engine.greet()[:2] == (0, Control.WAITING), "it does not wait")
        code, phase, text = engine(Control.LOAD, 0)
        check(code == -errno.EBADMSG and phase == Control.WAITING and "empty" in text, f"{code} {text}")
        code, phase, text = engine(Control.LOAD, 100)
        check(code == -errno.EBADMSG and phase == Control.WAITING, f"{code} {text}")
        check(engine(Control.LOAD, 1 << 40)[0] == -errno.EMSGSIZE, "a state larger than what is shared")
        check(engine(Control.RUN)[0] == -errno.EINVAL, "nothing was loaded, and it runs")
    check(vmm.running(), "the VMM ended")
    vmm.signal(signal.SIGTERM)
    check(vmm.wait(10) == 0, "SIGTERM does not end it in order")
