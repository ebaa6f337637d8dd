# SPDX-License-Identifier: Apache-2.0
"""`understudy top` on a real terminal (tmux's), and `understudy metrics` with a real Prometheus."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import processes
from processes import Process
from understudy_test import PAGES, SOURCE, Skip, check, wait_for

PORT, PROMETHEUS_PORT = 9877, 9090


def need(program):
    if not shutil.which(program):
        raise Skip(f"no {program}")


class Terminal:
    """`understudy top` in a tmux of its own."""

    def __init__(self, run, columns, rows, *argv, environment="LC_ALL=C.UTF-8"):
        need("tmux")
        self.run, self.socket = run, os.path.join(run.directory, "tmux")
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "--",
                  f"{environment} {run.understudy} top {' '.join(argv)}; echo ended with $?; exec sleep 1000")

    def tmux(self, *argv):
        # tmux wants a UTF-8 locale to give UTF-8 back.
        return self.run.command("tmux", "-S", self.socket, *argv, environment={"LC_ALL": "C.UTF-8", "TERM": "screen"})[0]

    def text(self):
        return self.tmux("capture-pane", "-p")

    def press(self, *keys):
        self.tmux("send-keys", *keys)

    def resize(self, columns, rows):
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def wait(self, what, *parts, seconds=20):
        """Until the screen shows all of them (patterns); the text."""
        found = []

        def poll():
            found[:] = [self.text()]
            return all(re.search(part, found[0], re.M) for part in parts)
        wait_for(f"the screen shows {what}", seconds, poll, lambda: found[0], every=0.1)
        return found[0]


def run_dir(pair):
    return pair.path("run")


def top(pair, *argv, **options):
    return pair.run.us("top", "--run-dir", run_dir(pair), "--interval", "500ms", *argv, **options)


def page(network, path="/metrics", method="GET"):
    """(code, headers, text) from the server at 127.0.0.1 of that network."""
    got = []

    def ask():
        processes.enter_network(network)
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=20)
        connection.request(method, path)
        answer = connection.getresponse()
        got.append((answer.status, dict(answer.getheaders()), answer.read().decode()))
        connection.close()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)
    check(got, f"no answer to {method} {path}")
    return got[0]


class Figures:
    """One page of `understudy metrics`."""

    def __init__(self, text):
        self.text = text
        self.names = set(re.findall(r"^# TYPE (\S+)", text, re.M))
        self.series = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                       for line in text.splitlines() if not line.startswith("#")}

    def of(self, name, *labels):
        """The value of the one series of this name with these labels; None: there is none."""
        found = [value for series, value in self.series.items()
                 if series.startswith(f"understudy_{name}{{") and all(label in series for label in labels)]
        check(len(found) <= 1, f"{name} {labels}: {len(found)} series\n{self.text}")
        return found[0] if found else None


def serve(run, *argv):
    process = Process("metrics", [run.understudy, "metrics", *argv], os.path.join(run.logs, "metrics.log"),
                      run.network("alpha"))
    wait_for("metrics listen", 20, lambda: "http://127.0.0.1:9877/metrics" in open(process.log).read() or
             not process.running(), lambda: open(process.log).read())
    check(process.running(), open(process.log).read())
    return process


def figures(run):
    code, headers, text = page(run.network("alpha"))
    check(code == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"), f"{code} {headers}")
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
        check(done.returncode == 0 and not done.stdout + done.stderr, f"promtool: {done.stdout}{done.stderr}")
    return Figures(text)


def test_once(run):
    """One plain frame and one object: of a pair that is protected, of one whose primary died, of nobody."""
    pair = run.pair(takeover="auto", load=PAGES)
    out, _, _ = top(pair, "--once", expect=3)
    check(f"no daemon in {run_dir(pair)}" in out, out)
    run.us("top", "--once", "--run-dir", pair.path("missing"), expect=3)
    pair.up()
    pair.wait_epochs(10)
    out, _, _ = top(pair, "--once", environment={"LC_ALL": "C"})
    check(out.isascii(), out)
    for part in (r"^ web +PROTECTED .* alpha +primary +beta +1 ", r"^ web +PROTECTED .* beta +standby +alpha +1 ",
                 "P R O T E C T E D .* web on alpha, primary", r"p50 [\d.]+ [um]s, p99 [\d.]+ ms"):
        check(re.search(part, out, re.M), f"'{part}' is not in\n{out}")
    row = next(line for line in out.splitlines() if " primary " in line)
    check(re.search(r"[\d.]+ [KM]iB +[\d.]+ [KM]iB", row), f"no rates in: {row}")
    machines = {machine["status"]["host"]: machine for machine in json.loads(top(pair, "--json")[0])["machines"]}
    check(machines["alpha"]["protection"] == machines["beta"]["protection"] == "PROTECTED", f"{machines}")
    check(machines["alpha"]["wire_bytes_per_s"] > 0 and machines["alpha"]["dirty_bytes_per_s"] > 0, f"{machines}")
    check(machines["alpha"]["status"]["committed_epoch"] > 0, f"{machines}")
    one, _, _ = run.us("top", "--once", "--interval", "100ms", pair.config("alpha"), "--host", "alpha")
    check("1 machine," in one and " primary " in one and " standby " not in one, one)

    pair.kill_primary()
    pair.wait_state("beta", "active")
    out, _, _ = top(pair, "--once")
    check(re.search(r"^ web.alpha.* GONE ", out, re.M), out)  # its socket is still there
    check(re.search(r"^ web +UNPROTECTED .* beta +primary +alpha +2 ", out, re.M), out)
    check("2 want help" in out and "took " in out, out)
    pair.engines["beta"].kill()
    top(pair, "--json", expect=3)


def test_a_terminal(run):
    """What a person sees while daemons hang, die and come; keys; sizes."""
    pair = run.pair(load=PAGES).up()
    terminal = Terminal(run, 80, 24, "--run-dir", run_dir(pair), "--interval", "300ms", "--timeout", "300ms")
    text = terminal.wait("both daemons", r"^>web +PROTECTED +primary", r"^ web +PROTECTED +standby",
                         r"P R O T E C T E D   for", "pauses", "[▁▂▃▄▅▆▇█]")
    check("DIRTY/s" not in text and all(len(line) <= 80 for line in text.splitlines()), text)
    terminal.press("Down")
    terminal.wait("the standby selected", r"^>web +PROTECTED +standby", "web on beta, standby")
    terminal.press("h")
    terminal.wait("help", "nobody could go on with the guest")
    terminal.press("h", "s", "k")
    terminal.wait("another order", "by urgency", "^>web .* primary")
    terminal.resize(160, 50)
    text = terminal.wait("all columns", "WIRE/s +DELAY99 +HELD  PAUSES", r"MiB +[\d.]+ [KM]iB")
    check(len(text.rstrip("\n").splitlines()) == 50, f"{len(text.splitlines())} lines\n{text}")
    terminal.resize(39, 10)
    terminal.wait("that it is too small", "at least 40x8, please")
    terminal.resize(100, 30)
    terminal.wait("the table again", "^>web +PROTECTED +primary")

    terminal.press("p")
    first = terminal.wait("a pause", "PAUSED")
    epoch = re.search(r"^>web .*", first, re.M).group(0)
    pair.wait_epochs(20)
    check(epoch in terminal.text(), f"it goes on while paused\n{epoch}\n{terminal.text()}")
    terminal.press("p")
    wait_for("it goes on", 20, lambda: epoch not in terminal.text(), terminal.text)

    # A daemon that hangs costs a line, and nobody else's figures. (The standby would lose its primary; it is the one.)
    pair.engines["beta"].signal(signal.SIGSTOP)
    terminal.wait("that one daemon hangs", r"^.web +NO ANSWER +standby", "1 wants help")
    terminal.wait("that the other is alive and says why", r"^.web +(UNPROTECTED|DEGRADED) +primary")
    pair.engines["beta"].signal(signal.SIGCONT)
    pair.wait_protected()
    terminal.wait("both again", r"^.web +PROTECTED +primary", r"^.web +PROTECTED +standby")

    run.us("stop", pair.config("beta"), "--host", "beta")
    terminal.wait("that one has ended", r"^.web +GONE +standby")
    pair.standby()
    terminal.wait("that it is back", r"^.web +PROTECTED +standby", seconds=60)
    terminal.press("q")
    terminal.wait("the end", "^ended with 0")


def test_no_terminal(run):
    need("script")
    _, err, _ = run.us("top", expect=2)
    check("no terminal" in err and "--once" in err, err)
    out, err, _ = run.command("script", "-qec", f"{run.understudy} top --run-dir {run.directory}", "/dev/null", expect=2,
                              environment={"TERM": "no-such-terminal"})
    check("'no-such-terminal' (TERM) is not known" in out + err, out + err)
    for argv, said in ((("--interval", "1ms"), "100ms to 60s"), (("--interval", "soon"), "--interval"),
                       (("--listen", "127.0.0.1:1"), "does not belong"), (("no-such-machine",), "no-such-machine")):
        _, err, _ = run.us("top", "--once", *argv, expect=2)
        check(said in err, err)


def test_figures(run):
    """The endpoint with nobody, with a pair, with one daemon that hangs and one that lies, after the primary's death."""
    pair = run.pair(takeover="auto", load=PAGES)
    server = serve(run, "--run-dir", run_dir(pair), "--timeout", "400ms")
    nobody = figures(run)
    check(len(nobody.series) == 1, nobody.text)
    documented = set(re.findall(r"^\| `(understudy_\w+)", open(os.path.join(SOURCE, "docs/metrics.md")).read(), re.M))
    check(documented == nobody.names, f"docs/metrics.md differs: {documented ^ nobody.names}")

    pair.up()
    pair.wait_epochs(10)
    primary, standby = ('host="alpha"', 'role="primary"', 'peer="beta"'), ('host="beta"', 'role="standby"')
    first, second = figures(run), None
    pair.wait_epochs(10)
    second = figures(run)
    for labels in primary, standby:
        check(second.of("protected", 'machine="web"', *labels) == 1, second.text)
    check(second.of("guest_running", *primary) == 1 and second.of("guest_running", *standby) == 0, second.text)
    check(second.of("unprotected_seconds") is None, second.text)
    for name in "checkpoints_total", "wire_bytes_total", "guest_bytes_total", "pause_seconds_count", "pause_seconds_sum":
        check(second.of(name, *primary) > first.of(name, *primary), f"{name} does not grow")
    buckets = [value for series, value in second.series.items() if series.startswith("understudy_pause_seconds_bucket")]
    check(buckets == sorted(buckets) and buckets[-1] == second.of("pause_seconds_count"), f"{buckets}")
    status = pair.status("alpha")
    check(second.of("generation", *primary) == status["generation"], second.text)

    for method, path, code in (("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405),
                               ("HEAD", "/metrics", 405), ("DELETE", "/", 405)):
        check(page(run.network("alpha"), path, method)[0] == code, f"{method} {path} is not {code}")
    _, err, _ = run.us("metrics", "--run-dir", run_dir(pair), network=run.network("alpha"), expect=1)
    check("127.0.0.1:9877" in err and "in use" in err, err)
    _, err, _ = run.us("metrics", "--listen", "nowhere", expect=2)
    check("nowhere" in err, err)
    _, err, _ = run.us("metrics", "--once", expect=2)
    check("--once does not belong" in err, err)

    # A liar at a socket of its own, and one that never answers: both are left out, the others are not.
    liar, silent = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    for listener, name in (liar, "liar.sock"), (silent, "silent.sock"):
        listener.bind(os.path.join(run_dir(pair), name))
        listener.listen(8)

    def lie():
        while True:
            client, _ = liar.accept()
            client.recv(100)
            client.sendall(json.dumps({**status, "state": 'x"} 1\n'}).encode() + b"\n")
            client.close()
    threading.Thread(target=lie, daemon=True).start()
    time.sleep(0.3)  # the last page is served for 0.2 s
    spoilt = figures(run)
    check(spoilt.of("daemon_up", 'socket="silent.sock"') == 0, spoilt.text)
    ups = [spoilt.of("daemon_up", f'socket="{name}"') for name in ("liar.sock", "web.alpha.sock")]
    check(sorted(ups) == [0, 1] and spoilt.of("daemon_up", 'socket="web.beta.sock"') == 1, spoilt.text)
    check(spoilt.of("collect_seconds ") is None and spoilt.series["understudy_collect_seconds"] >= 0.4, spoilt.text)
    for name in "liar.sock", "silent.sock":
        os.unlink(os.path.join(run_dir(pair), name))

    pair.kill_primary()
    pair.wait_state("beta", "active")
    after = wait_for("figures of the takeover", 20, lambda: (lambda page: page if page.of(
        "guest_running", 'host="beta"') == 1 else None)(figures(run)), server.log, every=0.3)
    check(after.of("daemon_up", 'socket="web.alpha.sock"') == 0, after.text)
    check(after.of("protected", 'host="beta"', 'role="primary"') == 0, after.text)
    check(after.of("generation", 'host="beta"') == 2 and 0 < after.of("takeover_seconds", 'host="beta"') < 60, after.text)
    check('state="active",protection="UNPROTECTED"' in after.text, after.text)
    server.signal(signal.SIGTERM)
    check(server.wait(10) == 0, "metrics does not end in order")


def test_without_privileges(run):
    """The unit's sandbox, as far as it can be had without systemd: root without a capability, a read-only world."""
    need("setpriv")
    pair = run.pair()
    pair.standby()
    server = Process("metrics", [
        "unshare", "--mount", "sh", "-c", 'mount -o remount,ro,bind / 2>/dev/null || mount --bind -o ro / /; '
        'exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"', "sh", run.understudy, "metrics",
        "--run-dir", run_dir(pair)], os.path.join(run.logs, "metrics.log"), run.network("alpha"))
    wait_for("metrics listen", 20, lambda: "http://" in open(server.log).read() or not server.running())
    check(server.running(), open(server.log).read())
    capabilities = re.search(r"^CapEff:\s*(\w+)", open(f"/proc/{server.pid}/status").read(), re.M).group(1)
    check(int(capabilities, 16) == 0, f"CapEff is {capabilities}")
    check(figures(run).of("daemon_up", 'socket="web.beta.sock"') == 1, "the daemon is not seen")
    for unit in sorted(os.listdir(os.path.join(run.build, "systemd"))):
        if unit.startswith("understudy-metrics") and shutil.which("systemd-analyze"):
            text = open(os.path.join(run.build, "systemd", unit)).read()
            path = os.path.join(run.directory, unit)
            with open(path, "w") as file:
                file.write(re.sub(r"^ExecStart=\S+", f"ExecStart={run.understudy}", text, flags=re.M))
            out, err, _ = run.command("systemd-analyze", "verify", "--man=no", path, expect=None)
            check(unit not in out + err, f"systemd-analyze: {out}{err}")


def queries(dashboard):
    """[(panel, query)] with Grafana's variables replaced."""
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    return [(title, expr.replace("$__rate_interval", "15s").replace("$machine", ".*")) for title, expr in found]


def test_dashboard(run):
    """A real Prometheus scrapes the endpoint, and each query of the dashboard and each alert finds what it asks for."""
    with open(os.path.join(SOURCE, "examples/grafana-dashboard.json")) as file:
        dashboard = json.load(file)
    alerts = os.path.join(SOURCE, "examples/prometheus-alerts.yml")
    pair = run.pair(load=PAGES).up()
    serve(run, "--run-dir", run_dir(pair))
    served = figures(run).names
    served |= {name + suffix for name in served for suffix in ("_bucket", "_sum", "_count")}
    asked = {name for _, expr in queries(dashboard) for name in re.findall(r"understudy_\w+", expr)}
    asked |= set(re.findall(r"\bunderstudy_\w+", open(alerts).read()))
    check(len(asked) > 20 and asked <= served, f"not served: {asked - served}")
    need("prometheus")
    need("promtool")
    config = os.path.join(run.directory, "prometheus.yml")
    with open(config, "w") as file:
        file.write(f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{alerts}']\n"
                   "scrape_configs: [{job_name: understudy, static_configs: [{targets: ['127.0.0.1:9877']}]}]\n")
    run.command("promtool", "check", "config", config)
    prometheus = Process("prometheus", ["prometheus", f"--config.file={config}", "--log.level=warn",
                                        f"--storage.tsdb.path={os.path.join(run.directory, 'tsdb')}",
                                        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}"],
                         os.path.join(run.logs, "prometheus.log"), run.network("alpha"))

    def ask(expr):
        out, _, code = run.command("promtool", "query", "instant", "-o", "json", f"http://127.0.0.1:{PROMETHEUS_PORT}",
                                   expr, network=run.network("alpha"), expect=None)
        return json.loads(out) if code == 0 else None
    wait_for("some scrapes", 60, lambda: ask('count_over_time(up{job="understudy"}[30s]) > 4') or
             not prometheus.running(), lambda: open(prometheus.log).read(), every=0.5)
    check(prometheus.running(), open(prometheus.log).read())
    check(ask('up{job="understudy"}')[0]["value"][1] == "1", "Prometheus refuses the page")
    for title, expr in queries(dashboard):
        answer = ask(expr)
        check(answer is not None, f"{title}: Prometheus refuses {expr}")
        check(answer or "unprotected_seconds" in expr, f"{title}: nothing comes of {expr}")
    quantile = next(expr for title, expr in queries(dashboard) if title == "Pause" and "0.99" in expr)
    p99 = float(ask(quantile)[0]["value"][1])
    check(0 < p99 < 5, f"the pause's p99 is {p99}")
    for expr in re.findall(r"^ +expr: (.*)$", open(alerts).read(), re.M):
        check(ask(expr) is not None, f"Prometheus refuses {expr}")
    check(ask('ALERTS') == [], f"alerts on a protected pair: {ask('ALERTS')}")
    pair.engines["beta"].kill()
    wait_for("an alert", 30, lambda: ask('ALERTS{alertname="UnderstudyUnprotected"}'), pair.story, every=0.5)
    return f"{len(queries(dashboard))} queries, {len(asked)} names, p99 of the pause {1000 * p99:.1f} ms"
