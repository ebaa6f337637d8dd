# SPDX-License-Identifier: Apache-2.0
"""What protection costs a real server, and what a client sees of a takeover: the guest "redis" of `understudy bench protect`.

Theory of operation

Two network namespaces play the hosts, a third is the world outside. One guest runs Redis, which appends to a file
on a disk of the guest. The same guest is asked by the same redis-benchmark from outside in every row, first while
nothing protects it and then under protection with one setting after the other; so every ratio is one of the same
run, the same guest and the same network.

Then a guest is killed together with its engine while a client writes over one connection, which the standby's
guest goes on with: the gap is the longest time for which that client had no answer.
"""
import os
import signal
import statistics
import time

import clients
import frame
import protect_report as report
import protection
import services
from understudy_test import check, wait_for

MEMORY_MIB = 256
DETECT = "250ms"
PROGRAMS = ("qemu-system-x86_64", "redis-benchmark", "ip", "bridge", "nsenter")
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


def unprotected(run, count, requests, rounds):
    began = time.monotonic()
    return {**ask(run, count, requests, rounds), "seconds": time.monotonic() - began}


def protected(run, pair, count, requests, rounds, **keys):
    row = protection.under_protection(run, pair, lambda _: ask(run, count, requests, rounds), **keys)
    row["wire_bytes_per_request"] = row["wire_bytes"] / row["requests"]
    return row


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
