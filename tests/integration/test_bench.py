# SPDX-License-Identifier: Apache-2.0
"""`understudy bench migrate`, `takeover`, `protect` and `scale` with whole guests: they measure, and the JSON has what scripts
look for. Never how fast."""
import json
import os

import kvm
from understudy_test import SOURCE, check

NUMBER = (int, float)
VARIANTS = ["understudy", "qemu", "qemu-multifd", "qemu-tls", "qemu-multifd-tls"]
MOVE = {"cpu_source_s": NUMBER, "cpu_destination_s": NUMBER, "memory_source_bytes": int, "memory_destination_bytes": int,
        "total_s": NUMBER, "downtime_ms": NUMBER, "console_gap_ms": NUMBER, "wire_bytes": int,
        "throughput_bytes_per_s": NUMBER, "told": dict}
TOLD = {"total_s": NUMBER, "downtime_ms": NUMBER, "bytes": int}
PARTS = {"stop", "scan", "copy", "state", "carry", "load", "run"}
RATIOS = {"total": NUMBER, "told_total": NUMBER, "downtime": NUMBER, "wire_bytes": NUMBER}


def has(what, name, wanted):
    for key, kind in wanted.items():
        check(key in what and isinstance(what[key], kind), f"{name}: {key} is {what.get(key, 'missing')}")


def load(path):
    """A result that is one, by the schema where that can be checked."""
    with open(path) as file:
        result = json.load(file)
    with open(os.path.join(SOURCE, "bench", "schema.json")) as file:
        schema = json.load(file)
    try:
        import jsonschema
    except ImportError:
        return result  # tests/bench skips by name then
    jsonschema.Draft202012Validator(schema).validate(result)
    return result


def samples(result, name):
    return next((figure["samples"] for figure in result["figures"] if figure["name"] == name), None)


def test_migrate(run):
    """A small guest, one round: all move it, it is whole, and times, bytes and ratios are there."""
    out = os.path.join(run.directory, "out.json")
    said, _, _ = run.us("bench", "migrate", "--quick", "--no-idle", "--settle", "0.2", "--max-downtime", "300",
                        "--build", run.build, "--json", out, seconds=110)
    for name in "understudy (TLS 1.3)", "QEMU, multifd + TLS", "our downtime":
        check(name in said, f"the table lacks {name}:\n{said}")
    result = load(out)
    check([note for note in result["notes"] if "COLO is not measured" in note], f"{result['notes']}")
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
        one, memory = variant["moves"][0], 128 << 20
        check(one["cpu_source_s"] > 0 and one["cpu_destination_s"] > 0, f"{name}: no processor time: {one}")
        check(all(40 << 20 < one[f"memory_{side}_bytes"] < 8 * memory for side in ("source", "destination")), f"{name}: {one}")
        check(samples(result, f"128m-2000000.{name}.downtime") == [one["downtime_ms"]], f"{name}: {result['figures']}")
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
    for options in (["--memory", "64M"], ["--dirty", "fast"], ["--peers", "xen"], ["--rounds", "0"], ["more"]):
        run.us("bench", "migrate", *options, expect=2)
    _, err, _ = run.command("setpriv", "--reuid=65534", "--clear-groups", run.understudy, "bench", "migrate", expect=1)
    check("needs root" in err, err)


def test_takeover(run):
    """Two kills: each is whole, its parts add up, and what an observer misses is no shorter than the guest stood still."""
    out, page = os.path.join(run.directory, "out.json"), os.path.join(run.directory, "out.html")
    said, _, _ = run.us("bench", "takeover", "--quick", "--build", run.build, "--json", out, "--html", page, seconds=110)
    check("2 kills" in said and "▁" in said, said)
    result = load(out)
    check(len(result["takeovers"]) == 2, f"{len(result['takeovers'])} kills")
    for kill in result["takeovers"]:
        parts = kill["parts_ms"]
        check(sum(parts.values()) - parts["detect"] <= kill["decision_to_running_ms"] + 1, f"parts of more than their whole: {kill}")
        check(kill["kill_to_running_ms"] >= kill["decision_to_running_ms"], f"running before the kill: {kill}")
        check(min(kill["gap_ms"].values()) >= kill["decision_to_running_ms"], f"seen while nobody ran: {kill}")
    check(result["takeovers"][0]["moment_s"] != result["takeovers"][1]["moment_s"], "the moments are alike")
    check(len(samples(result, "kill_to_running")) == 2, f"{result['figures']}")
    with open(page) as file:
        check("kill 2" in file.read(), "the page lacks a kill")


def test_takeover_kvm(run):
    """The bare guest in our own VMM is killed and goes on."""
    kvm.need_kvm(run)
    out = os.path.join(run.directory, "out.json")
    said, _, _ = run.us("bench", "takeover", "--vmm", "kvm", "--kills", "1", "--load-mib", "2", "--build", run.build, "--json", out,
                        seconds=110)
    check("our own VMM" in said, said)
    kill, = load(out)["takeovers"]
    check(list(kill["gap_ms"]) == ["udp"] and kill["gap_ms"]["udp"] >= kill["decision_to_running_ms"] > 0, f"{kill}")


def test_protect(run):
    """Every row is measured in rounds, beside the same guest unprotected, with what the engines cost."""
    out = os.path.join(run.directory, "out.json")
    run.us("bench", "protect", "--requests", "300", "--clients", "10", "--rounds", "3", "--kills", "0", "--build", run.build,
           "--json", out, seconds=110)
    result = load(out)
    for name, row in result["rows"].items():
        check(len(row["redis_rounds"]) == 3 and row["requests"] >= 90, f"{name}: {row['redis_rounds']}")
        check(len(samples(result, f"{name}.rps")) == 3, f"{name}: no samples")
        if "unprotected" not in name:
            check(row["cpu_s"]["alpha"] > 0 and row["cpu_s"]["beta"] > 0, f"{name}: no processor time: {row['cpu_s']}")
            check(all(value > 1 << 20 for value in row["memory_bytes"].values()), f"{name}: {row['memory_bytes']}")
    ratios = [one for one in result["ratios"] if one["of"] == "protected.rps"]
    check(len(ratios) == 1 and len(ratios[0]["samples"]) == 3, f"{result['ratios']}")


def test_protect_bare(run):
    """Our own VMM and QEMU with the same guest: its progress, its stops and pauses, alone and under protection."""
    kvm.need_kvm(run)
    out, page = os.path.join(run.directory, "out.json"), os.path.join(run.directory, "out.html")
    said, _, _ = run.us("bench", "protect", "--guest", "bare", "--quick", "--working-set", "1M", "--rounds", "2", "--build",
                        run.build, "--json", out, "--html", page, seconds=110)
    check("own VMM, 1 vCPU" in said and "QEMU, 1 vCPU" in said, said)
    result = load(out)
    check(list(result["rows"]) == ["kvm-1cpu-1000", "qemu-1cpu-1000"], f"{list(result['rows'])}")
    check(result["environment"]["accelerator"] == "kvm", f"{result['environment']}")
    for name, row in result["rows"].items():
        check(row["checkpoints"] > 0 and row["pages_captured"] > 0, f"{name}: {row}")
        for one in row["base"] + row["rounds"]:
            check(one["writes_per_s"] > 0 and one["stops_ms"] and one["silence_ms"] > 0, f"{name}: {one}")
        check(len(samples(result, f"{name}.pause_mean")) == 2, f"{name}: {result['figures']}")
        for kind in "pause", "delay", "stops":
            found = [one for one in result["histograms"] if one["name"] == f"{name}.{kind}"]
            check(found and found[0]["count"] == sum(count for _, count in found[0]["buckets"]), f"{name}.{kind}: {found}")
    ratio, = [one for one in result["ratios"] if one["who"] == "peer" and one["of"].endswith("pause_mean")]
    check(len(ratio["samples"]) == 2, f"{ratio}")
    with open(page) as file:
        check("every 0.2 s" in file.read(), "the page lacks the guest's stops")


def test_scale_vcpus(run):
    """The line that needs a guest: our own VMM's pause by vCPUs, as curves."""
    kvm.need_kvm(run)
    out = os.path.join(run.directory, "out.json")
    said, _, _ = run.us("bench", "scale", "--quick", "--lanes", "1", "--vms", "1", "--sizes", "1M", "--rounds", "1", "--vcpus", "2",
                        "--build", run.build, "--json", out, seconds=110)
    result = load(out)
    check(list(result["vcpus"]["rows"]) == ["kvm-1cpu-1000", "kvm-2cpu-1000"], f"{result['vcpus']}")
    curve = [(one["x"], len(one["samples"])) for one in result["figures"] if one["name"].endswith("pause_mean")]
    check(curve == [(1, 1), (2, 1)], f"{curve}")
    check("our own VMM with 1000 page writes a second" in said, said)
