# SPDX-License-Identifier: Apache-2.0
"""A guest under protection while something is measured: what its engines say and cost meanwhile.

Engines are started for it, so that their distributions (pause, delay) are of it; what the primary counts (bytes, checkpoints)
is the difference of its status after and before. It counts only if output was held and the guest protected all the time.
"""
import signal
import threading
import time

import costs
import processes
from understudy_test import check


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


def spent(pair):
    return {host: costs.cpu_s(pair.engines[host].pid) for host in ("alpha", "beta")}


def between(pair, holding, work):
    """What work() returns, and what engines said and spent while it ran."""
    before, cpu, began = holding.look(), spent(pair), time.monotonic()
    found = work()
    seconds, cpu_after, after = time.monotonic() - began, spent(pair), holding.look()
    check(not holding.broken, f"not held and protected while it was measured: {holding.broken}", pair.story)
    wire, checkpoints = (after[key] - before[key] for key in ("wire_bytes", "checkpoints"))
    return {**found, "seconds": seconds, "cpu_s": {host: cpu_after[host] - cpu[host] for host in cpu}, "wire_bytes": wire,
            "wire_bytes_per_s": wire / seconds, "checkpoints": checkpoints, "checkpoints_per_s": checkpoints / seconds,
            "pages_captured": after["dirty_pages"]["sum"] - before["dirty_pages"]["sum"], "status_before": before,
            "status_after": after}


def under_protection(run, pair, work, **keys):
    """One row: work(holding) while engines with these keys protect the guest, which runs on without them afterwards."""
    pair.write_config(**keys)
    pair.standby()
    pair.protect()
    pair.wait_epochs(2)
    with Holding(pair) as holding:
        row = between(pair, holding, lambda: work(holding))
        memory = {host: processes.rss(pair.engines[host].pid) for host in pair.engines}
    before, after = row["status_before"], row["status_after"]
    encoded = bytes_by_encoder(before, after)
    row.update({"keys": keys, "memory_bytes": memory, "encoders": encoded,
                "delta_factor_computed": (row["wire_bytes"] + encoded["saved_against_whole"]) / row["wire_bytes"],
                "disk_payload_bytes": after["disks"]["payload_bytes"] - before["disks"]["payload_bytes"],
                "disk_bytes_written": after["disks"]["written_bytes"] - before["disks"]["written_bytes"],
                "device_state": {key: after["device_state"][key] - before["device_state"][key]
                                 for key in ("bytes", "payload_bytes")},
                "captures_given_up": after["captures_given_up"] - before["captures_given_up"], "looks": holding.seen,
                **{key: after[key] for key in ("interval_ms", "pause_ms", "pause_parts_p50_ms", "dirty_pages", "output")}})
    row["other_bytes"] = (row["wire_bytes"] - sum(encoded["bytes"].values()) - row["disk_payload_bytes"]
                          - row["device_state"]["payload_bytes"])
    end_protection(run, pair)
    return row


def end_protection(run, pair):
    """The primary says goodbye and leaves its guest alone; the standby goes."""
    run.us("stop", pair.config("alpha"), "--host", "alpha")
    pair.engines["alpha"].wait(20)
    pair.engines["beta"].signal(signal.SIGTERM)
    pair.engines["beta"].wait(20)
