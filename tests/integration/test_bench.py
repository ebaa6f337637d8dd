# SPDX-License-Identifier: Apache-2.0
"""`understudy bench migrate`: every variant moves a guest, and the JSON has what scripts look for. No speed."""
import json
import os

from understudy_test import check

NUMBER = (int, float)
VARIANTS = ["understudy", "qemu", "qemu-multifd", "qemu-tls", "qemu-multifd-tls"]
MOVE = {"total_s": NUMBER, "downtime_ms": NUMBER, "console_gap_ms": NUMBER, "wire_bytes": int,
        "throughput_bytes_per_s": NUMBER, "told": dict}
TOLD = {"total_s": NUMBER, "downtime_ms": NUMBER, "bytes": int}
PARTS = {"stop", "scan", "copy", "state", "carry", "load", "run"}
RATIOS = {"total": NUMBER, "told_total": NUMBER, "downtime": NUMBER, "wire_bytes": NUMBER}


def has(what, name, wanted):
    for key, kind in wanted.items():
        check(key in what and isinstance(what[key], kind), f"{name}: {key} is {what.get(key, 'missing')}")


def test_migrate(run):
    """A small guest, one round: all move it, it is whole, and times, bytes and ratios are there."""
    out = os.path.join(run.directory, "out.json")
    said, _, _ = run.us("bench", "migrate", "--memory", "128M", "--rounds", "1", "--no-idle", "--dirty", "2M", "--settle",
                        "0.2", "--max-downtime", "300", "--build", run.build, "--json", out, seconds=110)
    for name in "understudy (TLS 1.3)", "QEMU, multifd + TLS", "our downtime":
        check(name in said, f"the table lacks {name}:\n{said}")
    with open(out) as file:
        result = json.load(file)
    has(result, "result", {"environment": dict, "options": dict, "rows": list})
    row, = result["rows"]
    has(row, "row", {"memory_bytes": int, "dirty_bytes_per_s": int, "dirty_bytes_per_s_measured": NUMBER, "rounds": int,
                     "variants": dict, "ratios": dict})
    check(row["memory_bytes"] == 128 << 20 and row["dirty_bytes_per_s"] == 2000000, f"{row}")
    check(list(row["variants"]) == VARIANTS, f"variants {list(row['variants'])}")
    for name, variant in row["variants"].items():
        if name != "understudy" and variant["failed"]:
            continue  # QEMU's own: docs/testing.md
        check(len(variant["moves"]) == 1 and not variant["failed"], f"{name}: {variant}")
        has(variant["moves"][0], name, MOVE)
        has(variant["moves"][0]["told"], name, TOLD)
        has(variant["median"], f"{name}, median", MOVE)
        check(variant["median"]["wire_bytes"] > 40 << 20, f"{name}: {variant['median']['wire_bytes']} bytes of 51 MiB")
    moved = [name for name, variant in row["variants"].items() if variant["moves"]]
    check(list(row["ratios"]) == moved[1:]
          and moved[:1] == ["understudy"], f"ratios {list(row['ratios'])}, moved {moved}")
    for name, ratios in row["ratios"].items():
        has(ratios, name, RATIOS)
    ours = row["variants"]["understudy"]["moves"][0]
    parts, told = ours["told"]["downtime_parts_ms"], ours["told"]["downtime_ms"]
    check(set(parts) == PARTS and all(part >= 0 for part in parts.values()), f"parts {parts}")
    check(sum(parts.values()) <= told * 1.01 + 1, f"parts {parts} of {told} ms")
    check(ours["downtime_ms"] <= told + 1, f"QEMU says {ours['downtime_ms']} ms, the engine no less than {told}")


def test_migrate_usage(run):
    """What needs no guest: help, nonsense, and root asked for by name."""
    out, _, _ = run.us("bench", "migrate", "--help")
    check("--max-downtime" in out and "understudy bench migrate" in out, out)
    for options in (["--memory", "64M"], ["--dirty", "fast"], ["--variants", "xen"], ["--rounds", "0"], ["more"]):
        run.us("bench", "migrate", *options, expect=2)
    _, err, _ = run.command("setpriv", "--reuid=65534", "--clear-groups", run.understudy, "bench", "migrate", expect=1)
    check("needs root" in err, err)
