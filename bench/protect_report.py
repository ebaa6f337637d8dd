# SPDX-License-Identifier: Apache-2.0
"""What `understudy bench protect` says of what it measured: ratios, a table, the machine."""
import re
import statistics

import figures


ROWS = {"unprotected": "unprotected", "protected": "protected", "whole-pages": "pages always whole",
        "one-unprotected": "1 client, unprotected", "one-fixed": "1 client, fixed interval", "one-eager": "1 client, eager"}
REDIS = (("rps", "SET/s", "1/s", "higher"), ("p50_latency_ms", "latency p50", "ms", "lower"),
         ("p99_latency_ms", "latency p99", "ms", "lower"), ("max_latency_ms", "longest wait for an answer", "ms", "lower"))


def parse_redis_benchmark(text):
    """What redis-benchmark (7.0) says of one test: {"rps", "avg_latency_ms", "min_...", "p50_...", "p95_...", "p99_...",
    "max_latency_ms", "buckets": [[milliseconds, requests]]}. It tells two cumulative distributions, of some percentiles and of
    round times; both together are the finest that it has."""
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", text)
    summary = re.search(r"latency summary \(msec\):\s+avg +min +p50 +p95 +p99 +max\s+([\d. ]+)", text)
    seen = {float(top): int(count) for top, count in
            re.findall(r"% <= ([\d.]+) milliseconds \(cumulative count (\d+)\)", text)}
    if not rate or not summary or not seen:
        raise AssertionError(f"redis-benchmark says nothing that is understood:\n{text[-2000:]}")
    found = {"rps": float(rate.group(1)), "buckets": []}
    found.update(zip((f"{key}_latency_ms" for key in ("avg", "min", "p50", "p95", "p99", "max")),
                     map(float, summary.group(1).split())))
    before = 0
    for top in sorted(seen):
        if seen[top] > before:
            found["buckets"].append([top, seen[top] - before])
            before = seen[top]
    return found


def latencies(row):
    """Of all requests of a row's rounds."""
    rounds = row["redis_rounds"]
    return figures.joined([one["buckets"] for one in rounds], min(one["min_latency_ms"] for one in rounds),
                          max(one["max_latency_ms"] for one in rounds))


def describe(result, own):
    """Each row's rounds, ratios to the unprotected row round by round, what the engines say and cost, and the takeovers."""
    for name, title in ROWS.items():
        row, base = own["rows"][name], "one-unprotected" if name.startswith("one") else "unprotected"
        crowd = "1 client" if name.startswith("one") else "many clients"
        for key, words, unit, better in REDIS:
            samples = [one[key] for one in row["redis_rounds"]]
            tag = key.removesuffix("_latency_ms")
            result.figure(f"{name}.{tag}", f"{title}: {words}", unit, better, samples, f"{crowd}: {words}",
                          "base" if name == base else "ours")
            if name != base and key in ("rps", "p50_latency_ms"):
                result.ratio(f"{name}.{tag}", f"{base}.{tag}", f"{title}: {words}, to unprotected", better,
                             figures.quotients(samples, [one[key] for one in own["rows"][base]["redis_rounds"]]), "base")
        result.histogram(f"{name}.latency", f"{title}: latency of every SET", "ms", "lower", latencies(row))
        if name != base:
            describe_engine(result, name, title, row)
    gaps = [one["gap_ms"] for one in own["takeovers"]]
    result.figure("takeover.gap", "takeover: a client's gap", "ms", "lower", gaps)
    result.figure("takeover.running", "takeover: from the decision to the guest running", "ms", "lower",
                  [one["takeover_ms"]["total"] for one in own["takeovers"]])
    result.timeline("takeover, from the last sign of the primary", "ms", [
        (f"kill {number + 1}", takeover_parts(one["takeover_ms"])) for number, one in enumerate(own["takeovers"])])


def describe_engine(result, name, title, row):
    gigabytes, checkpoints = row["wire_bytes"] / 1e9, max(row["checkpoints"], 1)
    describe_distributions(result, name, title, row)
    result.figure(f"{name}.wire", f"{title}: bytes on the wire for a SET", "B", "lower", [row["wire_bytes_per_request"]],
                  "bytes on the wire for a SET")
    for host, side in ("alpha", "primary"), ("beta", "standby"):
        result.figure(f"{name}.cpu_{side}", f"{title}: processor time for a GB on the wire, {side}", "s/GB", "lower",
                      [row["cpu_s"][host] / gigabytes], f"processor time for a GB on the wire, {side}")
        result.figure(f"{name}.cpu_checkpoint_{side}", f"{title}: processor time of a checkpoint, {side}", "ms", "lower",
                      [1000 * row["cpu_s"][host] / checkpoints], f"processor time of a checkpoint, {side}")
    describe_memory(result, name, title, row)


def describe_distributions(result, name, title, row):
    """Of every capture, and of every frame that the guest sent."""
    for tag, words, times in ("pause", "pause", row["pause_ms"]), ("delay", "output held", row["output"]["delay_ms"]):
        for key in "p50", "p99", "max":
            result.figure(f"{name}.{tag}_{key}", f"{title}: {words}, {key}", "ms", "lower", [times[key]], f"{words}, {key}")
        found = figures.of_status(times)
        if found:
            result.histogram(f"{name}.{tag}", f"{title}: {words}", "ms", "lower", found)


def describe_memory(result, name, title, row):
    for host, side in ("alpha", "primary"), ("beta", "standby"):
        result.figure(f"{name}.memory_{side}", f"{title}: memory of the engine, {side}", "B", "lower",
                      [row["memory_bytes"][host]], f"memory of the engine, {side}")


def takeover_parts(told):
    """What `status` tells of a takeover, in its order."""
    return [(name, told[name]) for name in ("detect", "arbitrate", "apply", "load", "run")]


def ratio(a, b):
    return a / b if b else None


def bytes_of_page(row):
    """What one page cost on the wire; rows differ in how many checkpoints they had time for."""
    return ratio(sum(row["encoders"]["bytes"].values()), sum(row["encoders"]["pages"].values()))


def computed_for_pages(encoders):
    """By the engine's own count of what whole pages would have been."""
    sent = sum(encoders["bytes"].values())
    return ratio(sent + encoders["saved_against_whole"], sent)


def summary(result):
    """Everything is a ratio to, or a difference from, the unprotected guest of this run."""
    rows = result["rows"]
    base, one = rows["unprotected"]["redis"], rows["one-unprotected"]["redis"]
    gaps = [one_kill["gap_ms"] for one_kill in result["takeovers"]]
    return {
        "throughput_ratio": {name: ratio(rows[name]["redis"]["rps"], base["rps"])
                             for name in ("protected", "whole-pages")},
        "latency_ratio": {name: {key: ratio(rows[name]["redis"][f"{key}_latency_ms"], base[f"{key}_latency_ms"])
                                 for key in ("p50", "p99")} for name in ("protected", "whole-pages")},
        "delta_factor_measured": ratio(rows["whole-pages"]["wire_bytes"], rows["protected"]["wire_bytes"]),
        "delta_factor_measured_pages": ratio(bytes_of_page(rows["whole-pages"]), bytes_of_page(rows["protected"])),
        "delta_factor_computed_pages": computed_for_pages(rows["protected"]["encoders"]),
        "delta_factor_computed": rows["protected"]["delta_factor_computed"],
        "one_client_added_p50_ms": {name: rows[f"one-{name}"]["redis"]["p50_latency_ms"] - one["p50_latency_ms"]
                                    for name in ("fixed", "eager")},
        "takeover_gap_ms": {"median": statistics.median(gaps), "max": max(gaps)} if gaps else None,
    }


def redis_line(name, row, base):
    of = row["redis"]
    return (f"  {name:<22}{of['rps']:>9.0f}{ratio(of['rps'], base['rps']):>9.3f}{of['p50_latency_ms']:>10.2f}"
            f"{of['p99_latency_ms']:>10.2f}{of['p50_latency_ms'] - base['p50_latency_ms']:>+12.2f}  "
            f"{figures.sparkline([one['rps'] for one in row['redis_rounds']])}")


def engine_line(name, row):
    delay = row["output"]["delay_ms"]
    here, there = (1000 * row["cpu_s"][host] / max(row["checkpoints"], 1) for host in ("alpha", "beta"))
    return (f"  {name:<22}{row['wire_bytes_per_s'] / 1e6:>8.2f}{row['wire_bytes_per_request'] / 1e3:>8.2f}"
            f"{row['checkpoints_per_s']:>8.1f}{row['pause_ms']['p50']:>8.2f}{row['pause_ms']['p99']:>8.2f}"
            f"{row['dirty_pages']['p50']:>8.0f}{delay['p50']:>9.2f}{delay['p99']:>9.2f}"
            f"{here:>8.2f}{there:>7.2f}")


def encoder_line(name, row):
    encoders = row["encoders"]
    parts = [f"{kind} {encoders['pages'][kind]} pages {encoders['bytes'][kind] / 1e6:.2f} MB"
             for kind in ("raw", "lz4", "delta", "same", "zero") if encoders["pages"][kind]]
    state, other, checkpoints = row["device_state"], row["other_bytes"], max(row["checkpoints"], 1)
    return (f"  {name:<22}{', '.join(parts)}\n  {'':<22}disk {row['disk_payload_bytes'] / 1e6:.2f} MB, device state "
            f"{state['payload_bytes'] / 1e6:.2f} MB ({state['payload_bytes'] / 1e3 / checkpoints:.1f} kB a checkpoint, of "
            f"{state['bytes'] / 1e3 / checkpoints:.0f}), all else {other / 1e6:.2f} MB ({other / 1e3 / checkpoints:.1f})")


def table(result):
    rows, summed, where = result["rows"], result["summary"], result["environment"]
    options = result["options"]
    many = [("protected", "protected"), ("pages always whole", "whole-pages")]
    one = [("fixed interval", "one-fixed"), ("eager", "one-eager")]
    head = f"  {'':<22}{'SET/s':>9}{'ratio':>9}{'p50 ms':>10}{'p99 ms':>10}{'p50 added':>12}  SET/s, rounds"
    lines = [f"guest by {where['accelerator']}, load {where['load_average_before'][0]:.1f} to {where['load_average_after'][0]:.1f}", "",
             f"Redis, fsync {options['fsync']}, {options['clients']} clients, a checkpoint every "
             f"{options['interval']} ms", head,
             redis_line("unprotected", rows["unprotected"], rows["unprotected"]["redis"])]
    lines += [redis_line(name, rows[key], rows["unprotected"]["redis"]) for name, key in many]
    lines += ["", "Redis, fsync everysec, 1 client", head,
              redis_line("unprotected", rows["one-unprotected"], rows["one-unprotected"]["redis"])]
    lines += [redis_line(name, rows[key], rows["one-unprotected"]["redis"]) for name, key in one]
    lines += ["", "The engine", f"  {'':<22}{'MB/s':>8}{'kB/SET':>8}{'ckpt/s':>8}{'pause50':>8}{'99 ms':>8}{'dirty50':>8}"
              f"{'delay50':>9}{'99 ms':>9}"
              f"{'cpu ms':>8}{'there':>7}"]
    lines += [engine_line(f"{rows[key]['clients']} clients, {name}" if key in ("protected", "whole-pages")
                          else f"1 client, {name}", rows[key]) for name, key in many + one]
    lines += ["", "What was on the wire"] + [encoder_line(name, rows[key]) for name, key in many]
    lines += [f"  delta against whole pages with lz4, measured: {summed['delta_factor_measured_pages']:.2f} times fewer bytes "
              f"a page, {summed['delta_factor_measured']:.2f} times fewer of all bytes for as many requests",
              f"  by the engine's own count: {summed['delta_factor_computed_pages']:.2f} times fewer a page, "
              f"{summed['delta_factor_computed']:.2f} of all bytes"]
    if summed["takeover_gap_ms"]:
        detections = [one_kill["takeover_ms"]["detect"] for one_kill in result["takeovers"]]
        gaps = ", ".join(f"{one_kill['gap_ms']:.0f}" for one_kill in result["takeovers"])
        lines += ["", f"Takeover, as a client of one connection saw it: median {summed['takeover_gap_ms']['median']:.0f}"
                  f" ms, longest {summed['takeover_gap_ms']['max']:.0f} ms without an answer ({gaps}), of which silence "
                  f"before the decision {statistics.median(detections):.0f} ms"]
    return "\n".join(lines)
