# SPDX-License-Identifier: Apache-2.0
"""The command line as scripts see it: help, exit codes, JSON."""
import json
import os
import re
import signal
import socket
import stat
import time

from understudy_test import check

COMMANDS = ["protect", "standby", "status", "takeover", "continue", "stop", "verify", "check", "pki",
            "fault-points", "bench", "events", "migrate", "top", "metrics"]
STATUS = {"vm": str, "host": str, "uuid": str, "role": str, "state": str, "protected": bool, "reason": str,
          "since_s": (int, float), "generation": int, "epoch": int, "committed_epoch": int, "peer": dict,
          "interval_ms": (int, float), "lanes": int, "tls": str, "congestion_control": str, "ktls": bool, "aes": str, "aes_reason": str, "guest": dict,
          "memory_bytes": int, "rss_bytes": int, "sessions": int}
PRIMARY = {"checkpoints": int, "pause_ms": dict, "dirty_pages": dict, "initial_copy": dict, "wire_bytes": int,
           "pages": dict, "compressing": bool, "staging": dict, "probe": dict, "commit_age_ms": (int, float),
           "rounds_live": int, "device_state": dict}


def test_help_and_exit_codes(run):
    out, _, _ = run.us("--help")
    for command in COMMANDS:
        check(re.search(rf"\b{command}\b", out), f"--help does not name {command}")
        help_text, _, _ = run.us(command, "--help")
        check("Usage" in help_text or "usage" in help_text, f"{command} --help: {help_text}")
    check(re.search(r"\d+\.\d+", run.us("--version")[0]), "--version names no version")
    for argv in (), ("no-such-command",), ("status",), ("status", "--no-such-option"):
        _, err, _ = run.us(*argv, expect=2)
        check(err.strip(), f"'{argv}' was refused in silence")
    pair = run.pair()
    run.us("status", pair.config("alpha"), "--host", "alpha", expect=3)
    run.us("takeover", pair.config("beta"), "--host", "beta", expect=3)
    run.us("verify", pair.config("alpha"), "--host", "alpha", expect=3)
    run.us("status", pair.config("alpha"), "--host", "gamma", expect=2)


def test_configuration_errors_name_their_place(run):
    pair = run.pair()
    path = pair.config("alpha")
    good = open(path).read()
    cases = {"interval = 50ms": ("interval = soon", "interval"), "name = web": ("colour = red", "colour"),
             "[host beta]": ("[hosts beta]", "hosts"), f"uuid = {pair.keys['uuid']}": ("uuid = 12", "uuid"),
             "detect = 1s": ("detect = 1s\nlanes = 1000", "lanes")}
    for line, (bad, named) in cases.items():
        check(line in good, f"the file lacks '{line}'")
        with open(path, "w") as file:
            file.write(good.replace(line, bad, 1))
        _, err, _ = run.us("protect", path, "--host", "alpha", expect=2)
        check(named in err and os.path.basename(path) in err, f"'{bad}': {err}")


def test_status_schema(run):
    pair = run.pair().up()
    pair.wait_epochs(5)
    for host in "alpha", "beta":
        out, _, _ = run.us("status", pair.config(host), "--host", host, "--json")
        status = json.loads(out)
        wanted = {**STATUS, **(PRIMARY if host == "alpha" else {"probe": dict})}
        for key, kind in wanted.items():
            check(key in status and isinstance(status[key], kind),
                  f"{host}: {key} is {status.get(key, 'missing')!r}")
        check(status["vm"] == "web" and status["host"] == host and status["role"] ==
              ("primary" if host == "alpha" else "standby"), f"{status}")
        check(status["tls"].startswith("TLSv1.3 "), f"tls is {status['tls']!r}")
        text, _, _ = run.us("status", pair.config(host), "--host", host)
        check("web" in text and (status["protected"] and "PROTECTED" in text or status["state"] in text), f"status for people: {text}")
    status = pair.status("alpha")
    for key in "p50", "p99", "max", "last":
        check(status["pause_ms"][key] >= 0, f"pause_ms.{key}: {status['pause_ms']}")
    for pauses in status["pause_ms"], status["output"]["delay_ms"]:
        counts = [count for _, count in pauses["buckets"]]
        check(counts == sorted(counts) and counts[-1] <= pauses["count"], f"buckets: {pauses}")
        check(pauses["sum"] <= pauses["max"] * pauses["count"] * 1.001, f"sum: {pauses}")
    check(status["guest"]["running"] and status["guest"]["pid"] == pair.qemu.pid, f"guest: {status['guest']}")
    check(status["initial_copy"]["bytes"] >= pair.memory << 20, f"initial_copy: {status['initial_copy']}")
    check(status["staging"]["used_peak_bytes"] <= status["staging"]["configured_bytes"], f"{status['staging']}")
    for name in "zero", "raw", "lz4", "delta", "same":
        encoder = status["encoders"][name]
        check(encoder["pages"] >= 0 and encoder["bytes_saved"] >= 0, f"encoders.{name}: {encoder}")
    check(status["encoders"]["delta"]["pages"] + status["encoders"]["same"]["pages"] <= status["delta"]["hits"] and
          status["delta"]["memory_bytes"] <= 65 << 20, f"delta: {status['delta']}, encoders: {status['encoders']}")
    state = status["device_state"]
    check(0 < state["payload_bytes"] < state["bytes"] / 4, f"device_state did not shrink: {state}")
    path = os.path.join(pair.path("run"), "web.alpha.sock")
    check(stat.S_IMODE(os.stat(path).st_mode) == 0o600, "the control socket's mode is not 0600")
    return f"pause p50 {status['pause_ms']['p50']:.1f} ms, p99 {status['pause_ms']['p99']:.1f} ms"


def test_state_goes_as_it_is_where_one_side_does_not_compress(run):
    pair = run.pair().start_guest()
    with open(pair.config("beta")) as file:
        text = file.read()
    check("compression" not in text, "the file says how to compress already")
    with open(pair.config("beta"), "w") as file:
        file.write(text.replace("[vm]", "[vm]\ncompression = none", 1))
    pair.standby()
    pair.protect()
    pair.wait_epochs(3)
    state = pair.status("alpha")["device_state"]
    check(0 < state["bytes"] < state["payload_bytes"], f"device_state: {state}", pair.story)
    pair.verify()


def test_control_socket_takes_nonsense(run):
    pair = run.pair().up()
    path = os.path.join(pair.path("run"), "web.alpha.sock")
    for line in b"\n", b"{}\n", b"[1,2]\n", b"{\"command\":7}\n", b"{\"command\":\"no\"}\n", b"\xff\xfe\n", b"{" * 70000:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(path)
            try:
                control.sendall(line)
                control.shutdown(socket.SHUT_WR)
                reply = control.recv(65536)
            except OSError:
                reply = b""
            check(not reply or b"error" in reply, f"{line[:30]} was answered with {reply}")
    check(pair.status("alpha")["protected"], "nonsense on the control socket ended protection", pair.story)


def test_tells_systemd(run):
    """Ready, its state, and that it lives; nothing while it hangs."""
    pair = run.pair()
    path = pair.path("notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)

        def told(word, seconds=10):
            """Whether a message with this word comes in time."""
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                notify.settimeout(left)
                try:
                    if word in notify.recv(4096).decode().split("\n"):
                        return True
                except TimeoutError:
                    break
            return False

        engine = pair.standby(environment={"NOTIFY_SOCKET": path})
        check(told("READY=1") and told("WATCHDOG=1"), "nothing told")
        engine.signal(signal.SIGSTOP)
        while told("WATCHDOG=1", 0.2):  # on the way already
            pass
        check(not told("WATCHDOG=1", 2), "a stopped engine says that it lives")
        engine.signal(signal.SIGCONT)
        check(told("WATCHDOG=1"), "nothing told after going on")
        run.us("stop", pair.config("beta"), "--host", "beta")
        check(told("STOPPING=1"), "the end was not told")


def test_check(run):
    pair = run.pair().start_guest()
    out, _, _ = run.us("check", pair.path("alpha.qmp"))
    check(out.strip(), "check found nothing to say")
    findings = json.loads(run.us("check", pair.path("alpha.qmp"), "--json")[0])
    findings = findings.get("findings", findings) if isinstance(findings, dict) else findings
    check(findings and all({"subject", "verdict", "text"} <= set(one) for one in findings), f"{findings}")
    run.us("check", pair.path("no-such.qmp"), expect=(1, 2))
    pair.wait_ticks("alpha", 1)


def test_pki(run):
    pki = run.pki()
    run.us("pki", "check", pki)
    for name in "ca.key", "alpha.key":
        check(stat.S_IMODE(os.stat(f"{pki}/{name}").st_mode) & 0o077 == 0, f"others may read {name}")
    run.us("pki", "check", "--ca", f"{pki}/ca.pem", "--cert", f"{pki}/alpha.pem", "--key", f"{pki}/alpha.key",
           "--peer", "alpha")
    run.us("pki", "check", "--ca", f"{pki}/ca.pem", "--cert", f"{pki}/alpha.pem", "--key", f"{pki}/alpha.key",
           "--peer", "beta", expect=1)
    run.us("pki", "check", "--ca", f"{pki}/ca.pem", "--cert", f"{pki}/alpha.pem", "--key", f"{pki}/beta.key",
           expect=1)
    out, _, _ = run.command("openssl", "verify", "-CAfile", f"{pki}/ca.pem", f"{pki}/alpha.pem", f"{pki}/beta.pem")
    check(out.count(": OK") == 2, out)
    before = open(f"{pki}/ca.key").read()
    run.us("pki", "init", pki, expect=(1, 2))
    check(open(f"{pki}/ca.key").read() == before, "pki init overwrote a CA")


def test_bench_protect_usage(run):
    """What needs no guest: the scripts are found, help and wrong usage say so, and root is asked for by name."""
    out, _, _ = run.us("bench", "protect", "--help")
    check("--fsync" in out and "understudy bench protect" in out, out)
    run.us("bench", "protect", "--interval", "0", expect=2)
    run.us("bench", "protect", "more", expect=2)
    _, err, _ = run.command("setpriv", "--reuid=65534", "--clear-groups", run.understudy, "bench", "protect", expect=1)
    check("needs root" in err, err)
