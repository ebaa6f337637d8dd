# SPDX-License-Identifier: Apache-2.0
"""etcd as the arbiter, and the fence: whatever is cut, killed or put to sleep, never two guests."""
import json
import os
import signal

from etcd import Etcd, drop, undrop
from understudy_test import Skip, check, wait_for


def etcd_pair(run, etcd, **keys):
    return run.pair(takeover="auto", standby_loss="continue", **{**etcd.keys(), **keys})


def protected_pair(run):
    """One member of etcd, and a pair that has made some checkpoints."""
    etcd = Etcd(run)
    pair = etcd_pair(run, etcd).up()
    pair.wait_epochs(10)
    return etcd, pair


def check_only(pair, host, seconds=3):
    """Exactly this host's guest goes on (None: no guest)."""
    running = pair.ticking(seconds)
    check(running == ([host] if host else []), f"running: {running}, not {host}", pair.story)


def state(pair, host):
    return (pair.status(host) or {}).get("state")


def wait_yielded(pair):
    wait_for("alpha's guest is stopped for good", 30,
             lambda: state(pair, "alpha") == "yielded" or not pair.engines["alpha"].running(), pair.story)


def wait_arbiter_unreachable(pair):
    wait_for("beta says why it does not take over", 30,
             lambda: "cannot be reached" in (pair.status("beta") or {}).get("reason", ""), pair.story)


def test_check_asks(run):
    """`understudy check` says whether the arbiter can be asked, while there is time to mend it."""
    etcd = Etcd(run)
    pair = etcd_pair(run, etcd).start_guest()

    def found():
        findings = json.loads(run.us("check", pair.config("alpha"), "--host", "alpha", "--json",
                                  network=run.network("alpha"))[0])["findings"]
        return {finding["subject"]: finding for finding in findings}["arbiter"]
    finding = found()
    check(finding["verdict"] == "ok" and "nobody had to" in finding["text"], f"{finding}")
    for member in etcd.members.values():
        member.kill()
    finding = found()
    check(finding["verdict"] == "warning" and "etcd https://" in finding["text"], f"{finding}")
    return finding["text"]


def test_etcd_takeover(run):
    """Three members, TLS, client certificates, a user; the member that leads dies, then the primary does."""
    etcd = Etcd(run, members=3)
    pair = etcd_pair(run, etcd, etcd_timeout="5s").up()
    pair.wait_epochs(10)
    check(etcd.register() is None, "there is a register before anybody had to decide", pair.story)
    leader = etcd.leader()
    etcd.members[leader].signal(signal.SIGKILL)
    pair.kill_primary()
    pair.check_taken_over(seconds=60)
    check(etcd.register() == (2, "beta"), f"the register is {etcd.register()}", pair.story)
    return f"leader {leader} killed"


def test_etcd_sleeping_primary(run):
    """The primary's engine and guest sleep for longer than `detect`; awake again, it asks, loses and stops."""
    etcd, pair = protected_pair(run)
    for process in pair.qemu, pair.engines["alpha"]:
        process.signal(signal.SIGSTOP)
    pair.check_taken_over(passes=1)
    for process in pair.engines["alpha"], pair.qemu:
        process.signal(signal.SIGCONT)
    wait_yielded(pair)
    check_only(pair, "beta")
    check(etcd.register() == (2, "beta"), f"the register is {etcd.register()}", pair.story)


def test_etcd_link_cut(run):
    """Both are alive and reach etcd, not each other: one goes on, the other stops, and it stays so."""
    etcd, pair = protected_pair(run)
    run.link(False)
    register = wait_for("the register is won", 30, etcd.register, pair.story)
    check(register[0] == 2, f"the register is {register}", pair.story)
    winner = register[1]
    if winner == "beta":
        pair.wait_state("beta", "active")
        wait_yielded(pair)
    check_only(pair, winner)
    run.link(True)
    if winner == "alpha":
        pair.wait_protected()
    check_only(pair, winner)
    return f"{winner} went on"


def test_etcd_partitions(run):
    """Cuts that must change nothing, then the standby is cut off, then the primary, one way only."""
    etcd, pair = protected_pair(run)
    for host in "alpha", "beta":
        etcd.cut(host)
        pair.wait_epochs(20)
        check(pair.status("alpha")["protected"], f"without {host}'s way to etcd: not protected", pair.story)
        etcd.mend(host)
    check(etcd.register() is None, "somebody asked etcd though both hosts were up", pair.story)

    etcd.cut("beta")
    run.link(False)
    wait_for("alpha goes on alone", 30, lambda: etcd.register() == (2, "alpha"), pair.story)
    wait_arbiter_unreachable(pair)
    check_only(pair, "alpha")
    etcd.mend("beta")
    wait_for("beta has lost", 30, lambda: state(pair, "beta") == "waiting", pair.story)
    run.link(True)
    pair.wait_protected()
    pair.wait_epochs(5)

    # Beta does not hear alpha; alpha hears beta, and etcd hears alpha, which gets no answer.
    drop(run, run.network("beta"), "eth0", "input")
    etcd.cut("alpha", "out")
    pair.wait_state("beta", "active")
    wait_for("alpha holds its guest", 30, lambda: state(pair, "alpha") in ("stalled", "yielded"), pair.story)
    check_only(pair, "beta")
    undrop(run, run.network("beta"))
    etcd.mend("alpha")
    wait_yielded(pair)
    check_only(pair, "beta")
    check(etcd.register() == (3, "beta"), f"the register is {etcd.register()}", pair.story)


class Clock:
    """The wall clock of one host's engine, which jumps when it is told to."""
    LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"

    def __init__(self, run, host):
        if not os.path.exists(self.LIBRARY):
            raise Skip(f"no {self.LIBRARY} (package libfaketime)")
        self.file = os.path.join(run.directory, f"{host}.clock")
        self.jump("+8h")

    def jump(self, to):
        with open(self.file + ".new", "w") as file:
            file.write(to + "\n")
        os.rename(self.file + ".new", self.file)

    def environment(self):
        return {"LD_PRELOAD": self.LIBRARY, "FAKETIME_TIMESTAMP_FILE": self.file, "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def test_etcd_clock_jumps(run):
    """The hosts' clocks jump apart, by hours, while they are in touch, and again while both are alone. They stay
    within what the certificates allow: a clock that is off by more is refused by TLS."""
    etcd = Etcd(run)
    pair = etcd_pair(run, etcd).start_guest()
    alpha, beta = Clock(run, "alpha"), Clock(run, "beta")
    pair.standby(environment=beta.environment())
    pair.protect(environment=alpha.environment())
    pair.wait_epochs(10)
    alpha.jump("+20h")
    beta.jump("+1h")
    pair.wait_epochs(20)
    check(pair.status("alpha")["protected"], "not protected behind the jump", pair.story)
    check(etcd.register() is None, "somebody asked etcd though both hosts were up", pair.story)
    run.link(False)
    alpha.jump("+2h")
    beta.jump("+19h")
    register = wait_for("the register is won", 30, etcd.register, pair.story)
    alpha.jump("+15h")
    beta.jump("+1h")
    if register[1] == "beta":
        pair.wait_state("beta", "active")
        wait_yielded(pair)
    check_only(pair, register[1])
    with open(pair.log("alpha-protect")) as log:
        hours = {line[:2] for line in log if line[:2].isdigit()}
    check(len(hours) > 1, f"no clock jumped: {hours}", pair.story)
    return f"{register[1]} went on"


def test_etcd_all_cut(run):
    """Nobody reaches anybody: no guest runs. The first who reaches etcd again goes on; here the standby."""
    etcd, pair = protected_pair(run)
    for host in "alpha", "beta":
        etcd.cut(host)
    run.link(False)
    pair.wait_state("alpha", "stalled")
    wait_arbiter_unreachable(pair)
    check_only(pair, None)
    etcd.mend("beta")
    pair.wait_state("beta", "active")
    check_only(pair, "beta")
    etcd.mend("alpha")
    wait_yielded(pair)
    check_only(pair, "beta")


def test_fence(run):
    """No takeover before the fence has succeeded, and a status that says why; then it is called as agents are."""
    pair = run.pair(takeover="auto", standby_loss="stall", arbiter="none", fence_timeout="10s")
    agent, said, may = pair.path("agent"), pair.path("agent.said"), pair.path("agent.may")
    with open(agent, "w") as file:
        file.write(f"#!/bin/sh\ncat >{said}\nif [ -e {may} ]; then kill -9 $(cat {may}); exit 0; fi\n"
                   "echo 'Failed: the power switch does not answer' >&2\nexit 1\n")
    os.chmod(agent, 0o700)
    pair.host_keys = {host: {"fence": f"{agent} ip=10.0.0.9 plug={host}"} for host in ("alpha", "beta")}
    pair.up()
    pair.wait_epochs(10)
    run.link(False)
    status = wait_for("beta says why it does not take over", 30,
                      lambda: (lambda s: s if s and "power switch" in s["reason"] else None)(pair.status("beta")),
                      pair.story)
    check(status["state"] in ("lost", "arbitrating") and "is not fenced" in status["reason"], status["reason"],
          pair.story)
    with open(said) as file:
        options = file.read()
    check(options == "action=off\nip=10.0.0.9 plug=alpha\n".replace(" ", "\n"), options, pair.story)
    check(pair.memory_guests() and "beta" not in pair.ticking(2), "beta took over without the fence", pair.story)
    with open(may + ".new", "w") as file:
        file.write(f"{pair.engines['alpha'].pid} {pair.qemu.pid}")
    os.rename(may + ".new", may)
    pair.check_taken_over(passes=1)
    check(not pair.qemu.running(), "the fenced guest still runs", pair.story)


def test_refused_at_start(run):
    """What cannot be safe, or cannot work, is refused before anything starts."""
    pair = run.pair(takeover="auto", standby_loss="continue", arbiter="etcd")
    password = pair.path("password")
    with open(password, "w") as file:
        file.write("secret\n")
    os.chmod(password, 0o644)
    for keys, words in (({}, ("etcd-endpoints",)),
                        ({"etcd-endpoints": "http://10.0.0.3:2379"}, ("plain http", "loopback")),
                        ({"etcd-endpoints": "https://10.0.0.3:2379"}, ("etcd-ca",)),
                        ({"etcd-ca": "/nonexistent/ca.pem"}, ("etcd-ca /nonexistent/ca.pem",)),
                        ({"etcd-ca": "/etc/passwd", "etcd-user": "us"}, ("etcd-user", "etcd-password-file")),
                        ({"etcd-password-file": password}, (password, "chmod 600"))):
        pair.write_config(**keys)
        _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=(1, 2))
        check(all(word in err for word in words), f"{keys}: {err}")
    pair.keys = {key: value for key, value in pair.keys.items() if not key.startswith("etcd")}
    fences = {"alpha": {"fence": "/nonexistent/agent"}, "beta": {"fence": "/nonexistent/agent"}}
    pair.write_config(fences, arbiter="none")
    _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=2)
    check("A fence is no arbiter" in err, err)
    pair.write_config(fences, standby_loss="stall")
    _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=(1, 2))
    check("/nonexistent/agent" in err, err)
