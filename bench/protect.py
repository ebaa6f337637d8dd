#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What protection costs a real server, and what a client sees of a takeover: `understudy bench protect`.

Theory of operation

Two network namespaces play the hosts, a third is the world outside. One guest runs Redis, which appends to a file
on a disk of the guest. The same guest is asked by the same redis-benchmark from outside in every row, first while
nothing protects it and then under protection with one setting after the other; so every ratio is one of the same
run, the same guest and the same network. What the primary reports (bytes, checkpoints) is the difference of its
status after and before the row; distributions (pause, delay) are those of an engine that was started for the row.
A row counts only if output was held and the guest protected all the time.

Then a guest is killed together with its engine while a client writes over one connection, which the standby's
guest goes on with: the gap is the longest time for which that client had no answer.
"""
import argparse
import os
import shutil
import signal
import statistics
import sys
import threading
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(SOURCE, "tests", "integration"), os.path.join(SOURCE, "bench")]
import clients  # noqa: E402
import costs  # noqa: E402
import frame  # noqa: E402
import processes  # noqa: E402
import protect_report as report  # noqa: E402
import services  # noqa: E402
from understudy_test import check, wait_for  # noqa: E402

MEMORY_MIB = 256
DETECT = "250ms"
QUIET = "us.mem=1M us.rate=0 us.check=0 us.tick=1000"


def make_pair(run, options, tag, **keys):
    empty = os.path.join(services.image(run.build), "empty.img")
    return run.pair(memory=MEMORY_MIB, services="redis", network="tap", disks=[services.Disk(empty)], tag=tag,
                    load=f"{QUIET} us.fsync={options.fsync}", interval=f"{options.interval}ms", **keys)


def redis_benchmark(run, count, requests):
    out = run.outside().command("redis-benchmark", "-h", services.GUEST, "-c", str(count), "-n", str(requests),
                                "-t", "set", seconds=600)[0]
    return report.parse_redis_benchmark(out)


def ask(run, count, requests, rounds):
    """About as many SETs as are wanted, in equal rounds, none smaller than there are clients."""
    each = max(requests // rounds, count)
    found = [redis_benchmark(run, count, each) for _ in range(rounds)]
    return {"clients": count, "requests": each * rounds, "redis_rounds": found,
            "redis": {key: statistics.median(one[key] for one in found) for key in found[0] if key != "buckets"}}


class Holding(threading.Thread):
    """Looks again and again whether the guest is protected and its output held; `broken` is what was seen else."""

    def __init__(self, pair):
        super().__init__(daemon=True)
        self.pair, self.broken, self.seen, self.ending = pair, None, 0, threading.Event()

    def run(self):
        while not self.ending.is_set() and not self.broken:
            self.look()
            self.ending.wait(0.25)

    def look(self):
        status = self.pair.status("alpha")
        output = (status or {}).get("output", {})
        if not status or not status["protected"] or not output.get("holding") or output.get("gate") == "none":
            self.broken = {key: (status or {}).get(key) for key in ("state", "protected", "reason", "output")}
        self.seen += 1
        return status

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join(10)


def bytes_by_encoder(before, after):
    """What each way to encode pages put on the wire, and what those that know the standby's page saved."""
    def grown(name, key):
        return after["encoders"][name][key] - before["encoders"][name][key]
    pages = {name: grown(name, "pages") for name in after["encoders"]}
    page = 4096
    return {"pages": pages,
            "bytes": {"zero": 0, "raw": pages["raw"] * page, "lz4": pages["lz4"] * page - grown("lz4", "bytes_saved"),
                      "delta": after["delta"]["bytes"] - before["delta"]["bytes"], "same": 0},
            "saved_against_whole": grown("delta", "bytes_saved") + grown("same", "bytes_saved")}


def unprotected(run, count, requests, rounds):
    began = time.monotonic()
    return {**ask(run, count, requests, rounds), "seconds": time.monotonic() - began}


def spent(pair):
    return {host: costs.cpu_s(pair.engines[host].pid) for host in ("alpha", "beta")}


def protected(run, pair, count, requests, rounds, **keys):
    """One row: engines of its own, so that their distributions are of this row."""
    pair.write_config(**keys)
    pair.standby()
    pair.protect()
    pair.wait_epochs(2)
    with Holding(pair) as holding:
        before, cpu, began = holding.look(), spent(pair), time.monotonic()
        asked = ask(run, count, requests, rounds)
        seconds, cpu_after, after = time.monotonic() - began, spent(pair), holding.look()
    check(not holding.broken, f"not held and protected while it was measured: {holding.broken}", pair.story)
    encoded = bytes_by_encoder(before, after)
    wire = after["wire_bytes"] - before["wire_bytes"]
    row = {**asked, "seconds": seconds, "keys": keys, "cpu_s": {host: cpu_after[host] - cpu[host] for host in cpu},
           "memory_bytes": {host: processes.rss(pair.engines[host].pid) for host in cpu},
           "wire_bytes": wire, "wire_bytes_per_s": wire / seconds, "wire_bytes_per_request": wire / asked["requests"],
           "encoders": encoded,
           "delta_factor_computed": (wire + encoded["saved_against_whole"]) / wire,
           "disk_payload_bytes": after["disks"]["payload_bytes"] - before["disks"]["payload_bytes"],
           "disk_bytes_written": after["disks"]["written_bytes"] - before["disks"]["written_bytes"],
           "device_state": {key: after["device_state"][key] - before["device_state"][key]
                            for key in ("bytes", "payload_bytes")},
           "checkpoints": after["checkpoints"] - before["checkpoints"],
           "checkpoints_per_s": (after["checkpoints"] - before["checkpoints"]) / seconds,
           "interval_ms": after["interval_ms"], "pause_ms": after["pause_ms"],
           "pause_parts_p50_ms": after["pause_parts_p50_ms"], "dirty_pages": after["dirty_pages"],
           "output": after["output"], "captures_given_up": after["captures_given_up"]
           - before["captures_given_up"], "looks": holding.seen, "status_before": before, "status_after": after}
    row["other_bytes"] = (wire - sum(encoded["bytes"].values()) - row["disk_payload_bytes"]
                          - row["device_state"]["payload_bytes"])
    end_protection(run, pair)
    return row


def end_protection(run, pair):
    """The primary says goodbye and leaves its guest alone; the standby goes."""
    run.us("stop", pair.config("alpha"), "--host", "alpha")
    pair.engines["alpha"].wait(20)
    pair.engines["beta"].signal(signal.SIGTERM)
    pair.engines["beta"].wait(20)


def set_fsync(pair, how):
    with pair.shell() as shell:
        shell(f"redis-cli config set appendfsync {how}")


def measure_cost(run, options, screen):
    """The rows with many clients and with one, all of one guest."""
    rows, many, rounds = {}, options.clients, options.rounds
    alone = max(options.requests // 50, 100)
    # Between two namespaces no compression pays, and `auto` finds that out; between two machines it does. With lz4
    # in every row, the row without delta differs in nothing else.
    pair = make_pair(run, options, "cost", takeover="manual", detect="2s", eager="no", compression="lz4")
    screen.say(f"booting the guest ({MEMORY_MIB} MiB, {frame.accelerator()})")
    pair.start_guest(ticks=1).wait_ready("redis")
    unprotected(run, many, min(options.requests, 2000), 1)  # an interpreted guest is slow the first time
    screen.say(f"{many} clients, fsync {options.fsync}: unprotected")
    rows["unprotected"] = unprotected(run, many, options.requests, rounds)
    screen.say(f"{many} clients: protected every {options.interval} ms")
    rows["protected"] = protected(run, pair, many, options.requests, rounds, eager="no", delta_memory="64MiB")
    screen.say(f"{many} clients: protected, pages always whole (delta-memory = 0)")
    rows["whole-pages"] = protected(run, pair, many, options.requests, rounds, eager="no", delta_memory="0")
    set_fsync(pair, "everysec")
    screen.say("1 client, fsync everysec: unprotected")
    rows["one-unprotected"] = unprotected(run, 1, alone * 2, rounds)
    screen.say("1 client: protected, fixed interval")
    rows["one-fixed"] = protected(run, pair, 1, alone, rounds, eager="no", delta_memory="64MiB")
    screen.say("1 client: protected, eager")
    rows["one-eager"] = protected(run, pair, 1, alone, rounds, eager="yes")
    pair.qemu.kill()
    return rows


def measure_takeover(run, options, number):
    """{gap_ms, ...} of one kill, as the client of one connection saw it."""
    pair = make_pair(run, options, f"kill{number}", takeover="auto", detect=DETECT, eager="yes")
    pair.start_guest(ticks=1).wait_ready("redis")
    pair.standby()
    pair.protect()
    client = clients.Redis(run.outside().name, seed=number).start()
    try:
        wait_for("20 acknowledged writes", 60, lambda: client.error or client.last() >= 20, pair.story)
        time.sleep(run.random.uniform(0.2, 0.6))
        client.check()
        output = pair.status("alpha")["output"]
        check(output["holding"] and output["gate"] != "none", f"not held before the kill: {output}", pair.story)
        pair.kill_primary()
        killed, before = time.monotonic(), client.last()
        wait_for("the client's answers go on", 60, lambda: client.error or client.last() >= before + 20, pair.story)
        client.stop()
        gap, began = client.gap(since=killed - 1.0)
        verified = client.verify()
        status = pair.wait_state("beta", "active")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pair.story()}") from error
    finally:
        client.ending.set()
    os.kill(pair.guest_pid("beta"), signal.SIGKILL)
    pair.engines["beta"].wait(20)
    return {"gap_ms": gap * 1000, "began_before_kill_ms": (killed - began) * 1000, "values_verified": verified,
            "takeover_ms": status["takeover_ms"]}


def measure(run, options, screen):
    result = {"rows": measure_cost(run, options, screen), "takeovers": []}
    for number in range(options.kills):
        screen.say(f"takeover {number + 1} of {options.kills}: kill -9 of QEMU and engine, detect = {DETECT}")
        result["takeovers"].append(measure_takeover(run, options, number))
    result["summary"] = report.summary(result)
    return result


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench protect", description=(
        "Boots a guest with Redis between two hosts that are network namespaces of this machine, and measures it "
        "from outside with redis-benchmark (SET): unprotected, protected with a fixed interval, with pages always "
        "whole, with one client, and eager; then kills it under a client. Needs root and what "
        "tools/install-dependencies.sh installs. The guest is made once, from Debian's packages."))
    parser.add_argument("--clients", type=frame.number(2, 500), default=50, metavar="N", help="connections (default 50)")
    parser.add_argument("--requests", type=frame.number(200, 10000000), metavar="N",
                        help="SETs of a row; a fiftieth with one client (default 5000)")
    parser.add_argument("--interval", type=frame.number(1, 1000), default=25, metavar="MS",
                        help="time between checkpoints (default 25)")
    parser.add_argument("--fsync", default="always", choices=("always", "everysec"),
                        help="of the append-only file, with many clients (default always)")
    parser.add_argument("--kills", type=frame.number(0, 100), metavar="N", help="takeovers (default 3)")
    parser.add_argument("--rounds", type=frame.number(1, 100), default=5, metavar="N",
                        help="parts in which each row's requests are sent; a sample each (default 5)")
    parser.add_argument("--quick", action="store_true", help="2000 requests and one takeover")
    frame.add_outputs(parser)
    frame.add_programs(parser)
    options = parser.parse_args(argv)
    options.requests = options.requests or (2000 if options.quick else 5000)
    options.kills = (1 if options.quick else 3) if options.kills is None else options.kills
    return options


def missing():
    wanted = ("qemu-system-x86_64", "redis-benchmark", "ip", "bridge", "nsenter")
    return [name for name in wanted if not shutil.which(name)]


def main():
    keys = "clients", "requests", "rounds", "interval", "fsync", "kills", "quick"
    return frame.run("protect", parse_options(sys.argv[1:]), keys, "network namespaces, bridges and taps", missing(), measure,
                     report.describe, report.table)


if __name__ == "__main__":
    frame.main("protect", main)
