# SPDX-License-Identifier: Apache-2.0
"""Machines that libvirt manages, on both hosts."""
import json
import os
import re
import signal
import time

from domains import Domains
from qmp import Qmp
from test_disks import wait_fio
from test_reprotect import Watch, check_runs, move, wait_reprotected
from understudy_test import LIGHT, check, wait_for


def test_takeover(run):
    """Protected, killed with its host, taken over; virsh says so on either side all the while."""
    pair = Domains(run, takeover="auto").start_guest()
    alpha, beta = pair.hosts["alpha"], pair.hosts["beta"]
    qemu, definition = pair.libvirt_pid("alpha"), beta.virsh("dumpxml", "--inactive", "web")[0]
    pair.standby()
    status = pair.protect() and pair.status("alpha")
    check(status["guest"]["pid"] == qemu, f"protects process {status['guest']['pid']}, libvirt's is {qemu}")
    pair.wait_epochs(20)
    alpha.wait_state("web", "running", pair.story)
    check(beta.state("web") == "paused", f"the standby is {beta.state('web')}, not paused", pair.story)
    check(alpha.mark("web") == ("primary", "beta"), f"alpha's mark: {alpha.mark('web')}", pair.story)
    check(beta.mark("web") == ("standby", "alpha"), f"beta's mark: {beta.mark('web')}", pair.story)
    check(pair.verify()["differing"] == 0, "the memories differ", pair.story)
    beta.virsh("resume", "web")  # which is not to make it run before its time
    check("beta" not in pair.ticking(1), "the waiting guest runs", pair.story)
    stop_watching = pair.watch()
    pair.kill_host()
    stop_watching()
    pair.check_taken_over()
    check(beta.state("web") == "running", f"beta's domain is {beta.state('web')}", pair.story)
    check(beta.mark("web") == ("active", "alpha"), f"beta's mark: {beta.mark('web')}", pair.story)
    check(beta.virsh("dumpxml", "--inactive", "web")[0] == definition, "the definition was changed", pair.story)
    takeover = pair.status("beta")["takeover_ms"]
    pair.engines["beta"].kill()
    wait_for("the mark is gone with its engine", 10, lambda: beta.mark("web") is None, pair.story)
    pair.wait_ticks("beta", 2)
    return f"takeover in {takeover['total']:.0f} ms from the decision"


def test_libvirtd_restarts(run):
    """Of either side, in the middle: the guest is not touched, and replication goes on by itself."""
    pair = Domains(run, takeover="auto").start_guest()
    alpha, beta = pair.hosts["alpha"], pair.hosts["beta"]
    pair.standby()
    pair.protect()
    qemus = [pair.libvirt_pid(host) for host in ("alpha", "beta")]
    stop_watching = pair.watch()
    for host in alpha, beta, alpha:
        pair.wait_epochs(5)
        host.restart(gap=run.random.random())
        pair.wait_epochs(5)
    check(qemus == [pair.libvirt_pid(host) for host in ("alpha", "beta")], "a QEMU was replaced", pair.story)
    status = pair.status("alpha")
    check(status["sessions"] == 1, f"{status['sessions']} sessions", pair.story)
    alpha.wait_state("web", "running", pair.story)
    check(alpha.mark("web") == ("primary", "beta"), f"alpha's mark: {alpha.mark('web')}", pair.story)
    pair.kill_host()
    stop_watching()
    pair.check_taken_over()
    return f"longest pause {status['pause_ms']['max']:.0f} ms"


def test_pause_beside_a_socket(run):
    """The same domain, protected through libvirtd and then by a monitor of its own: what the way costs."""
    pair = Domains(run, monitor=True).start_guest()
    pair.standby()
    seen = {}
    for way in "libvirtd", "socket":
        pair.by_socket = way == "socket"
        pair.write_config()
        engine = pair.protect()
        pair.wait_epochs(60)
        status = pair.status("alpha")
        seen[way] = status["pause_ms"]["p50"], status["pause_parts_p50_ms"]
        run.us("stop", pair.config("alpha"), "--host", "alpha")
        check(engine.wait(15) == 0, "the engine did not end in order", pair.story)
        pair.wait_ticks("alpha", 1)
    text = "; ".join(f"{way}: pause p50 {pause:.1f} ms (stop {parts['stop']:.1f}, state {parts['state']:.1f}, "
                     f"resume {parts['resume']:.1f})" for way, (pause, parts) in seen.items())
    return f"{text}; ratio {seen['libvirtd'][0] / seen['socket'][0]:.1f}"


def test_pause_outlives_nobody(run):
    """The engine is killed while it holds the guest: the guest runs on, and the mark goes."""
    pair = Domains(run, interval="10ms").start_guest()
    alpha = pair.hosts["alpha"]
    pair.standby()
    for number in range(3):
        pair.protect()
        pair.wait_epochs(3)
        wait_for("a moment in a pause", 20, lambda: alpha.state("web") == "paused", pair.story, every=0)
        pair.engines["alpha"].kill()
        alpha.wait_state("web", "running", pair.story)
        pair.wait_ticks("alpha", 1)
        wait_for("the mark is gone with its engine", 10, lambda: alpha.mark("web") is None, pair.story)


def test_libvirtd_dies_in_a_pause(run):
    """The command that was under way is told again where that does no harm: the guest goes on, and so does all."""
    pair = Domains(run, monitor=True).start_guest()
    alpha = pair.hosts["alpha"]
    pair.standby()
    pair.protect()
    with Qmp(pair.path("alpha.qmp")) as qemu:
        held = 0
        for number in range(8):
            if held == 2:
                break
            pair.wait_epochs(3)
            wait_for("a pause", 20, lambda: qemu("query-status")["status"] == "paused", pair.story, every=0)
            alpha.kill()
            held += qemu("query-status")["status"] == "paused"  # else it was just over
            alpha.start()
            wait_for("the guest runs", 20, lambda: qemu("query-status")["status"] == "running", pair.story)
            pair.wait_ticks("alpha", 1)
    pair.wait_protected()
    check(pair.verify()["differing"] == 0, "the memories differ", pair.story)
    check(held, "libvirtd never died in a pause", pair.story)
    return f"{held} times in a pause"


def test_the_bridge_dies(run):
    """Who carries the monitor dies alone: that is no failure of the guest, which goes on, and nowhere else."""
    pair = Domains(run, takeover="auto").start_guest()
    pair.standby()
    engine = pair.protect()
    pair.wait_epochs(5)
    out, _, _ = run.command("pgrep", "-P", str(engine.pid), "us-libvirt")
    os.kill(int(out), signal.SIGKILL)
    check(engine.wait(20) == 1, "the engine did not end with a failure", pair.story)
    time.sleep(2)  # longer than the standby waits
    status = pair.status("beta")
    check(status["state"] != "active" and "beta" not in pair.ticking(2), f"beta: {status}", pair.story)
    pair.protect()
    pair.wait_ticks("alpha", 2)  # if it was killed in a pause, the guest stood still until now
    check(pair.verify()["differing"] == 0, "the memories differ", pair.story)
    pair.kill_host()
    pair.check_taken_over()


def ends(run, end, code=0, **options):
    """The guest ends by `end(pair)`: nobody takes over."""
    pair = Domains(run, takeover="auto", **options).start_guest()
    pair.standby()
    pair.protect()
    pair.wait_epochs(5)
    end(pair)
    found = pair.engines["alpha"].wait(60)
    check(found == code, f"the engine ended with {found}", pair.story)
    active = pair.ticking(3)
    check(active == [], f"after an orderly end the guest runs on {active}", pair.story)
    check((pair.status("beta") or {}).get("state") not in ("active", "taking-over"),
          "the standby took over a guest that had ended on purpose", pair.story)
    check(pair.hosts["beta"].state("web") != "running", "beta's domain runs", pair.story)


def test_guest_shuts_down(run):
    def end(pair):
        wait_for("the guest powers off", 60, lambda: pair.hosts["alpha"].state("web") == "shut off", pair.story)
    ends(run, end, load=LIGHT + " us.end=14")


def test_administrator_destroys(run):
    ends(run, lambda pair: pair.hosts["alpha"].virsh("destroy", "web"))


def test_guest_reboots(run):
    """A reset by the administrator is the guest's affair: protection goes on."""
    pair = Domains(run, takeover="auto").start_guest()
    pair.standby()
    pair.protect()
    before = pair.serial("alpha").text().count("probe ")
    pair.hosts["alpha"].virsh("reset", "web")
    wait_for("the guest boots again", 60, lambda: pair.serial("alpha").text().count("probe ") > before,
             pair.story)
    pair.wait_epochs(5)
    check(pair.status("alpha")["sessions"] == 1, "the session ended", pair.story)


def test_qemu_crashes(run):
    """QEMU alone is killed: libvirt knows that this is no shutdown, and the standby takes over at once."""
    pair = Domains(run, takeover="auto", detect="20s").start_guest()
    pair.standby()
    pair.protect()
    pair.wait_epochs(5)
    stop_watching = pair.watch()
    os.kill(pair.libvirt_pid("alpha"), 9)
    stop_watching()
    pair.check_taken_over(seconds=15)


def test_mismatch(run):
    """The standby's definition is another machine: refused, and the difference is shown."""
    channel = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
    cpu = "<cpu mode='custom'><model>qemu64</model>{}</cpu>"
    pair = Domains(run, devices=channel, standby_devices="", cpu=cpu.format(""),
                   standby_cpu=cpu.format("<feature policy='require' name='popcnt'/>"))
    pair.start_guest()
    pair.standby()
    engine = pair.protect(protected=False)
    wait_for("the refusal", 60, lambda: "machine-mismatch" in open(engine.log).read(), pair.story)
    shown = open(pair.log("beta-standby")).read()
    wanted = [r"^\S+ error: -device /machine/peripheral/rng0 virtio-rng-pci on ", r"^\S+ error: -cpuid 00000001.0 ECX ",
              r"^\S+ error: \+cpuid 00000001.0 ECX "]
    for line in wanted:
        check(re.search(line, shown, re.M), f"no line like {line!r} in the difference:\n{shown}")
    pair.hosts["alpha"].wait_state("web", "running", pair.story)
    check(not pair.status("alpha")["protected"], "protected, by another machine", pair.story)


def test_standby_refuses_a_running_domain(run):
    """A domain that runs on the standby's host is never ended; one that an engine left waiting is."""
    pair = Domains(run).start_guest()
    beta = pair.hosts["beta"]
    beta.virsh("start", "web")
    pair.standby()
    pair.protect(protected=False)
    wait_for("the refusal", 40, lambda: "runs here already" in open(pair.log("beta-standby")).read() +
             open(pair.log("alpha-protect")).read(), pair.story)
    check(beta.state("web") == "running", "beta's domain was ended", pair.story)
    beta.virsh("destroy", "web")
    if not pair.engines["alpha"].running():
        pair.protect(protected=False)
    pair.wait_protected()
    first = pair.libvirt_pid("beta")
    pair.engines["beta"].kill()
    pair.standby()
    pair.wait_epochs(5)
    check(pair.libvirt_pid("beta") != first, "the waiting domain was not replaced", pair.story)


def test_check(run):
    """A domain by its name, without a configuration; the guest and its metadata are left alone."""
    pair = Domains(run).start_guest()
    argv = pair.inside("alpha", [run.understudy, "check", "web", "--json"])
    findings = json.loads(run.command(*argv, network=run.network("alpha"), seconds=60)[0])
    check(findings["protectable"], f"not protectable: {findings}")
    said = [finding["text"] for finding in findings["findings"] if finding["subject"] == "speed"]
    check(len(said) == 1 and "memoryBacking" in said[0], f"nothing of shared memory: {findings}")
    check(pair.hosts["alpha"].mark("web") is None, "looking left a mark")
    argv = pair.inside("alpha", [run.understudy, "check", "nobody"])
    _, said, _ = run.command(*argv, network=run.network("alpha"), expect=1)
    check("nobody" in said and "Domain not found" in said, f"of a domain that is not there: {said}")
    pair.hosts["alpha"].virsh("destroy", "web")
    argv = pair.inside("alpha", [run.understudy, "check", "web"])
    _, said, _ = run.command(*argv, network=run.network("alpha"), expect=1)
    check("does not run" in said, f"of a domain that is shut off: {said}")


def suspend(pair):
    """As an administrator, who says it again if libvirt took it for done already, in the very pause of a checkpoint."""
    def stays():
        pair.hosts["alpha"].virsh("suspend", "web")
        return "alpha" not in pair.ticking(2)
    wait_for("the guest is suspended", 20, stays, pair.story)


def test_disk(run):
    """A disk is mirrored by commands through libvirtd, over its restart too, and is the guest's after a takeover."""
    disk = ("<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"
            "<source file='{directory}/{host}-disk.img'/><target dev='vda' bus='virtio'/></disk>")
    pair = Domains(run, takeover="auto", devices=disk)
    for host in "alpha", "beta":
        with open(pair.path(f"{host}-disk.img"), "wb") as file:
            file.write(os.urandom(1 << 20) if host == "alpha" else b"")
            file.truncate(8 << 20)
    pair.start_guest()
    pair.standby()
    pair.protect()
    pair.hosts["alpha"].restart()
    pair.wait_epochs(10)
    status = pair.status("alpha")["disks"]
    check(status["count"] == 1 and not status["behind"], f"disks: {status}", pair.story)
    suspend(pair)
    pair.wait_epochs(3)
    check(pair.hosts["alpha"].state("web") == "paused", "a checkpoint let a suspended guest run", pair.story)
    pair.hosts["alpha"].virsh("resume", "web")
    stop_watching = pair.watch()
    pair.wait_epochs(3)
    pair.kill_host()
    stop_watching()
    pair.check_taken_over()
    images = [open(pair.path(f"{host}-disk.img"), "rb").read() for host in ("alpha", "beta")]
    check(images[0] == images[1], "the disks differ", pair.story)


def test_rounds(run):
    """Moved, moved home, killed with its host, taken over, the host back, protected by itself, moved home: without a
    restart of the guest, its memory and its disk checked each time. UNDERSTUDY_ROUNDS=10 for more of it (and
    UNDERSTUDY_LIMIT_S)."""
    pair = Domains(run, load=LIGHT, takeover="auto", reprotect="auto", fio=True).start_guest()
    pair.standby()
    pair.protect()
    pair.wait_epochs(5)
    rounds = int(os.environ.get("UNDERSTUDY_ROUNDS", "1"))
    for _ in range(rounds):
        move(pair, "migrate", "alpha")
        wait_reprotected(pair, "beta")
        wait_fio(pair, "beta")
        move(pair, "switchback", "beta")
        wait_reprotected(pair, "alpha")
        wait_fio(pair)
        watch = Watch(pair, "alpha")
        wait_for("a checkpoint to be seen", 20, lambda: watch.acknowledged, pair.story)
        pair.kill_host()
        check_runs(pair, "beta", watch.stop())
        wait_fio(pair, "beta")
        pair.hosts["alpha"].start()
        pair.start("run", "alpha")
        wait_reprotected(pair, "beta")
        move(pair, "switchback", "beta")
        wait_reprotected(pair, "alpha")
        states = pair.hosts["alpha"].state("web"), pair.hosts["beta"].state("web")
        check(states[1] == "paused", f"virsh says {states}", pair.story)
    check(not pair.verify()["differing"], "memory differs", pair.story)
    return f"{rounds} rounds, generation {pair.status('alpha')['generation']}"
