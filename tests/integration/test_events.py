# SPDX-License-Identifier: Apache-2.0
"""Events: what happened, in order, to followers, hooks and late readers alike; and nobody of them delays an engine."""
import datetime
import json
import os
import signal

from processes import Process
from understudy_test import check, wait_for

KEYS = {"event": str, "time": str, "monotonic_s": (int, float), "sequence": int, "vm": str, "uuid": str, "host": str,
        "peer": str, "role": str, "state": str, "generation": int, "epoch": int, "committed_epoch": int, "reason": str}


def hook(pair, name, body, mode=0o755):
    directory = pair.path("hooks.d")
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o755)
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{body}\n")
    os.chmod(path, mode)
    return directory


def events(pair, host):
    out, _, _ = pair.run.us("events", pair.config(host), "--host", host, "--json")
    return [json.loads(line) for line in out.splitlines()]


def in_order(found, *names):
    """Do these names occur in this order, with anything between?"""
    rest = iter(found)
    return all(name in rest for name in names)


def wait_events(pair, host, *names, seconds=30):
    wait_for(f"{' ... '.join(names)} on {host}", seconds,
             lambda: in_order([event["event"] for event in events(pair, host)], *names),
             lambda: f"{[event['event'] for event in events(pair, host)]}\n{pair.story()}", every=0.2)
    return events(pair, host)


class Follower:
    def __init__(self, pair, host):
        self.path = pair.log(f"{host}-followed")
        self.process = Process(f"follower of {host}", [pair.run.understudy, "events", pair.config(host), "--host", host,
                                                       "--follow", "--json"], self.path)

    def lines(self):
        with open(self.path) as file:
            return [json.loads(line) for line in file if line.startswith("{")]


def test_a_takeover_as_told(run):
    pair = run.pair(takeover="auto")
    record = pair.path("told")
    directory = hook(pair, "10-record", 'echo "$UNDERSTUDY_HOST $UNDERSTUDY_SEQUENCE $UNDERSTUDY_EVENT '
                     f'$UNDERSTUDY_ROLE $UNDERSTUDY_GENERATION" >>{record}')
    pair.write_config(hooks=directory)
    pair.up()
    follower = Follower(pair, "beta")
    alpha = wait_events(pair, "alpha", "started", "session-established", "copying", "protected")
    for event in alpha:
        for key, kind in KEYS.items():
            check(isinstance(event.get(key), kind), f"{key} is {event.get(key)!r} in {event}")
        check(datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00")), event["time"])
        check(event["vm"] == "web" and event["host"] == "alpha" and event["role"] == "primary", f"{event}")
    check([event["sequence"] for event in alpha] == list(range(1, len(alpha) + 1)), f"{alpha}")
    text, _, _ = run.us("events", pair.config("alpha"), "--host", "alpha")
    check("web on alpha, primary: protected" in text, text)

    pair.kill_primary()
    beta = wait_events(pair, "beta", "started", "session-established", "protected", "session-lost", "degraded",
                       "arbitrating", "arbitration-won", "takeover-begun", "takeover-done")
    last = beta[-1]
    check(last["role"] == "primary" and last["generation"] == alpha[-1]["generation"] + 1, f"{last}")
    check([event["role"] for event in beta[:-1]] == ["standby"] * (len(beta) - 1), f"{beta}")
    wait_for("the follower saw the same", 10, lambda: follower.lines() == beta, lambda: f"{follower.lines()}\n{beta}")
    wait_for("the hooks saw the same", 10, lambda: [
        line for line in open(record).read().splitlines() if line.startswith("beta ")] == [
            f"beta {e['sequence']} {e['event']} {e['role']} {e['generation']}" for e in beta],
             lambda: open(record).read())

    run.us("stop", pair.config("beta"), "--host", "beta")
    check(follower.process.wait(10) == 0, "a follower of an orderly end fails")
    check(follower.lines()[-1]["event"] == "stopped", f"{follower.lines()[-1]}")
    pair.engines["beta"].wait(10)
    run.us("events", pair.config("beta"), "--host", "beta", expect=3)
    return f"{len(beta)} events at the standby"


def test_a_cut_and_a_crash(run):
    pair = run.pair(standby_loss="continue", detect="1s").up()
    follower = Follower(pair, "alpha")
    wait_events(pair, "alpha", "protected")
    run.link(False)
    told = wait_events(pair, "alpha", "protected", "session-lost", "degraded")
    check([event for event in told if event["event"] == "degraded"][0]["reason"], f"degraded without a reason: {told}")
    run.link(True)
    wait_events(pair, "alpha", "degraded", "session-established", "resynchronising", "protected", seconds=60)
    pair.engines["alpha"].kill()
    check(follower.process.wait(10) == 1, "a follower of an engine that was killed does not say so")


def test_hooks_delay_nobody(run):
    """A hook that never ends is ended; meanwhile checkpoints go on, and status counts."""
    pair = run.pair(hook_timeout="1s")
    record = pair.path("told")
    hook(pair, "10-sticks", "sleep 1000")
    hook(pair, "20-fails", "echo this is why; exit 3")
    directory = hook(pair, "30-record", f"echo $UNDERSTUDY_EVENT >>{record}")
    pair.write_config(hooks=directory)
    pair.up()
    pair.wait_epochs(20)
    counts = wait_for("hooks that timed out", 20, lambda: (pair.status("alpha")["events"]["hooks_timed_out"] >= 2 and
                                                           pair.status("alpha")["events"]), pair.story)
    check(counts["hooks_failed"] > counts["hooks_timed_out"] and counts["dropped"] == 0, f"{counts}")
    wait_for("the hook behind them", 20, lambda: os.path.exists(record), pair.story)
    log = open(pair.log("alpha-protect")).read()
    for part in ("hook 10-sticks: not done within 1000 ms", "hook 20-fails: this is why",
                 "hook 20-fails: failed with exit status 3"):
        check(part in log, f"the log lacks '{part}'", pair.story)
    pair.engines["alpha"].signal(signal.SIGTERM)
    check(pair.engines["alpha"].wait(15) == 0, "the engine's end waited for hooks", pair.story)


def test_hooks_that_nobody_may_trust(run):
    pair = run.pair()
    directory = hook(pair, "10-open", "true", mode=0o777)
    pair.write_config(hooks=directory)
    _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=1, network=run.network("beta"))
    check("10-open" in err and "0777" in err, err)
    os.chmod(directory, 0o777)
    _, err, _ = run.us("standby", pair.config("beta"), "--host", "beta", expect=1, network=run.network("beta"))
    check("hook directory" in err, err)
