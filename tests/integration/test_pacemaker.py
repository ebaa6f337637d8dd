# SPDX-License-Identifier: Apache-2.0
"""The OCF resource agent: its metadata, and its actions against real engines, in Pacemaker's order."""
import os
import re
import signal

from understudy_test import SOURCE, Skip, check, wait_for

AGENT = os.path.join(SOURCE, "pacemaker", "understudy")
SCHEMA = "/usr/share/resource-agents/metadata.rng"
SUCCESS, GENERIC, UNIMPLEMENTED, INSTALLED, CONFIGURED, NOT_RUNNING, PROMOTED, FAILED_PROMOTED = 0, 1, 3, 5, 6, 7, 8, 9


def need_functions():
    if not os.path.exists("/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs"):
        raise Skip("no resource-agents: the agent's shell functions are not there")


class Node:
    def __init__(self, pair, node, **parameters):
        self.pair, self.host = pair, node
        directory = pair.path(f"rsctmp-{node}")
        os.makedirs(directory, exist_ok=True)
        self.environment = {"OCF_ROOT": "/usr/lib/ocf", "OCF_RESOURCE_INSTANCE": "web:0", "HA_RSCTMP": directory,
                            "OCF_RESOURCE_TYPE": "understudy", "OCF_RESKEY_config": pair.config(node),
                            "OCF_RESKEY_host": node, "OCF_RESKEY_binary": pair.run.understudy,
                            "OCF_RESKEY_log": pair.log(f"{node}-agent"), "OCF_RESKEY_guest_wait": "40",
                            **{f"OCF_RESKEY_{key}": value for key, value in parameters.items()}}

    def __call__(self, action, expect=SUCCESS):
        _, err, code = self.pair.run.command(AGENT, action, expect=None, seconds=60, environment=self.environment,
                                             network=self.pair.run.network(self.host))
        check(code == expect, f"{action} on {self.host} gave {code}, not {expect}: {err}", self.pair.story)
        return err


def wait_protected(pair, host):
    wait_for(f"{host} protected", 60, lambda: (pair.status(host) or {}).get("protected"), pair.story)


def test_metadata(run):
    need_functions()
    environment = {"OCF_ROOT": "/usr/lib/ocf"}
    out, _, _ = run.command(AGENT, "meta-data", environment=environment)
    path = os.path.join(run.directory, "metadata.xml")
    with open(path, "w") as file:
        file.write(out)
    run.command("xmllint", "--noout", "--relaxng", SCHEMA, path)
    source = open(AGENT).read()
    for name in re.findall(r'<parameter name="(\w+)"', out):
        check(f"OCF_RESKEY_{name}" in source, f"parameter {name} is described and not used")
    run.command(AGENT, "dance", environment=environment, expect=UNIMPLEMENTED)


def test_validate(run):
    need_functions()
    pair = run.pair()
    Node(pair, "alpha")("validate-all")
    Node(pair, "alpha", config="")("validate-all", CONFIGURED)
    Node(pair, "alpha", config="/no/such.ini")("validate-all", INSTALLED)
    Node(pair, "alpha", config="/no/such.ini")("stop")
    Node(pair, "alpha", binary="/no/such/program")("validate-all", INSTALLED)
    check("gamma" in Node(pair, "alpha", host="gamma")("validate-all", CONFIGURED), "the wrong host is not named")
    Node(pair, "alpha")("monitor", NOT_RUNNING)
    Node(pair, "alpha")("stop")


def test_promote_demote(run):
    """The first promote, a switch to the other node and, from a node whose engine died, back; then the end."""
    need_functions()
    pair = run.pair(takeover="manual").start_guest()
    alpha, beta = Node(pair, "alpha"), Node(pair, "beta")
    for node in beta, alpha:
        node("monitor", NOT_RUNNING)
        node("start")
        node("start")  # again: nothing to do
        node("monitor")
    alpha("promote")
    alpha("promote")
    alpha("monitor", PROMOTED)
    wait_protected(pair, "alpha")
    beta("monitor")
    ticks = pair.wait_ticks("alpha", 2)

    alpha("demote")
    alpha("demote")
    alpha("monitor")
    check(not pair.qemu.running(), "the guest of a demoted node runs on", pair.story)
    os.rename(pair.path("alpha.serial"), pair.path("alpha-first.serial"))  # before the waiting QEMU opens its own
    beta("promote")
    beta("monitor", PROMOTED)
    first = pair.wait_ticks("beta", 2)[0][0]
    check(first >= ticks[-1][0] - 1, f"beta goes on at {first}, alpha was at {ticks[-1][0]}", pair.story)
    wait_protected(pair, "beta")  # in the other direction

    # The engine of the promoted node dies; its guest does not. (The oldest of that name: the other is its guard.)
    out, _, _ = run.command("pgrep", "-o", "-f", f"^{re.escape(run.understudy)} protect {re.escape(pair.config('beta'))} ")
    os.kill(int(out), signal.SIGKILL)
    pair.wait_ticks("beta", 2)
    beta("monitor", FAILED_PROMOTED)
    before = pair.serial("beta").ticks()[-1][0]
    beta("demote")
    check(not pair.ticking(2), "a guest runs on a node that was demoted", pair.story)
    alpha("promote")
    alpha("monitor", PROMOTED)
    after = pair.wait_ticks("alpha", 2)[0][0]
    wait_protected(pair, "alpha")

    alpha("stop")
    alpha("monitor", NOT_RUNNING)
    beta("monitor")
    beta("stop")
    beta("monitor", NOT_RUNNING)
    check(not pair.memory_guests(), f"guests are left: {pair.memory_guests()}", pair.story)
    return f"alpha {ticks[-1][0]} -> beta {first} ... {before} -> alpha {after}"


def test_moved(run):
    """Moved by `understudy migrate`, beside Pacemaker: promoted where the guest runs, failed where it is stopped."""
    need_functions()
    pair = run.pair(takeover="manual").start_guest()
    alpha, beta = Node(pair, "alpha"), Node(pair, "beta")
    for node in beta, alpha:
        node("start")
    alpha("promote")
    wait_protected(pair, "alpha")
    os.rename(pair.path("alpha.serial"), pair.path("alpha-first.serial"))
    run.us("migrate", pair.config("alpha"), "--host", "alpha", "--max-downtime", "5000",
           network=run.network("alpha"), seconds=60)
    beta("monitor", PROMOTED)
    check("elsewhere" in alpha("monitor", FAILED_PROMOTED), "no reason is given", pair.story)
    alpha("demote")
    alpha("monitor")
    beta("monitor", PROMOTED)
    check(pair.ticking(2) == ["beta"], "not exactly beta's guest runs", pair.story)
    for node in alpha, beta:
        node("stop")
    check(not pair.memory_guests(), f"guests are left: {pair.memory_guests()}", pair.story)
