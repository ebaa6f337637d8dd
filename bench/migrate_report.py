# SPDX-License-Identifier: Apache-2.0
"""What `understudy bench migrate` says of what it measured: medians, ratios, a table."""
import statistics

from figures import quotients, sparkline

MEASURES = ("total_s", "downtime_ms", "console_gap_ms", "wire_bytes", "throughput_bytes_per_s", "cpu_source_s",
            "cpu_destination_s", "memory_source_bytes", "memory_destination_bytes")
NAMES = {"understudy": "understudy (TLS 1.3)", "qemu": "QEMU", "qemu-multifd": "QEMU, multifd", "qemu-tls": "QEMU, TLS",
         "qemu-multifd-tls": "QEMU, multifd + TLS", "qemu-multifd-zlib": "QEMU, multifd, zlib",
         "qemu-multifd-zstd": "QEMU, multifd, zstd", "qemu-multifd-zlib-tls": "QEMU, multifd, zlib + TLS",
         "qemu-multifd-zstd-tls": "QEMU, multifd, zstd + TLS"}
MEMORY = {"random": "memory that does not compress", "text": "memory full of text", "mixed": "memory of all sorts"}


def median_of(moves, key):
    values = [move[key] for move in moves if move.get(key) is not None]
    return statistics.median(values) if values else None


def medians(moves):
    result = {key: median_of(moves, key) for key in MEASURES}
    told = [move["told"] for move in moves]
    result["told"] = {key: median_of(told, key) for key in ("total_s", "downtime_ms", "bytes")}
    result["downtime_max_ms"] = max(move["downtime_ms"] for move in moves)
    parts = [one["downtime_parts_ms"] for one in told if one.get("downtime_parts_ms")]
    if parts:
        result["downtime_parts_ms"] = {key: median_of(parts, key) for key in parts[0]}
    return result


def ratio(a, b):
    return a / b if a is not None and b else None


def summarise(row):
    """Medians of every variant, and ours divided by each of QEMU's."""
    for variant in row["variants"].values():
        variant["median"] = medians(variant["moves"]) if variant["moves"] else None
    ours = row["variants"]["understudy"]["median"]
    row["ratios"] = {}
    for name, variant in row["variants"].items():
        other = variant["median"]
        if name == "understudy" or not ours or not other:
            continue
        row["ratios"][name] = {
            "total": ratio(ours["total_s"], other["total_s"]),
            "told_total": ratio(ours["told"]["total_s"], other["told"]["total_s"]),
            "downtime": ratio(ours["downtime_ms"], other["downtime_ms"]),
            "wire_bytes": ratio(ours["wire_bytes"], other["wire_bytes"])}


# (name, in words, unit, key of a move, what it is divided by)
FIGURES = (("total", "total time", "s", "total_s", None), ("downtime", "downtime", "ms", "downtime_ms", None),
           ("gap", "gap on the console", "ms", "console_gap_ms", None), ("wire", "bytes on the wire", "B", "wire_bytes", None),
           ("cpu_source", "processor time, source", "s/GB", "cpu_source_s", 1e9),
           ("cpu_destination", "processor time, destination", "s/GB", "cpu_destination_s", 1e9),
           ("memory_source", "most memory, source", "B", "memory_source_bytes", None),
           ("memory_destination", "most memory, destination", "B", "memory_destination_bytes", None))


def by_round(row, name, key, per):
    """{round: value}; what is `per` bytes is divided by the guest's memory."""
    return {move["round"]: move[key] * (per / row["memory_bytes"] if per else 1) for move in row["variants"][name]["moves"]}


def load_of(row):
    load = f"dirtying {row['dirty_bytes_per_s'] / 1e6:.0f} MB/s" if row["dirty_bytes_per_s"] else "idle"
    return (f"{row['memory_bytes'] / 2**30:g} GiB, {load}",
            f"{row['memory_bytes'] >> 20}m-{row['dirty_bytes_per_s'] or 'idle'}")


def describe(result, own):
    """Figures of each row and variant, ours against each of QEMU's round by round, and the parts of our downtimes."""
    result.document["notes"] += own.pop("left_out")
    for row in own["rows"]:
        words, tag = load_of(row)
        for key, title, unit, field, per in FIGURES:
            ours = by_round(row, "understudy", field, per)
            for name in row["variants"]:
                values = by_round(row, name, field, per)
                result.figure(f"{tag}.{name}.{key}", f"{words}: {title}, {NAMES[name]}", unit, "lower", list(values.values()),
                              f"{words}: {title}", "ours" if name == "understudy" else "peer")
                if name != "understudy" and key in ("total", "downtime", "wire", "cpu_source", "cpu_destination"):
                    both = [number for number in ours if number in values]
                    result.ratio(f"{tag}.understudy.{key}", f"{tag}.{name}.{key}", f"{words}: {title}, ours to {NAMES[name]}",
                                 "lower", quotients([ours[n] for n in both], [values[n] for n in both]), "peer")
        moves = row["variants"]["understudy"]["moves"]
        result.timeline(f"{words}: our downtime", "ms", [
            (f"round {move['round'] + 1}", list((move["told"].get("downtime_parts_ms") or {}).items())) for move in moves])


def cell(value, form, width):
    return f"{'-' if value is None else format(value, form):>{width}}"


def variant_line(name, variant, ratios):
    of = variant["median"]
    if not of:
        return f"  {NAMES[name]:<26} {variant['failed'][0].splitlines()[0][:90] if variant['failed'] else 'not measured'}"
    mine = ratios.get(name, {})
    failed = f"   {len(variant['failed'])} failed" if variant["failed"] else ""
    return (f"  {NAMES[name]:<26}{cell(of['total_s'], '.2f', 8)}{cell(of['told']['total_s'], '.2f', 8)}"
            f"{cell(of['downtime_ms'], '.1f', 10)}{cell(of['downtime_max_ms'], '.1f', 8)}"
            f"{cell(of['told']['downtime_ms'], '.1f', 8)}{cell(of['console_gap_ms'], '.0f', 8)}"
            f"{cell(of['wire_bytes'] / 1e6, '.0f', 9)}{cell(of['throughput_bytes_per_s'] / 1e6, '.0f', 7)}"
            f"{cell(mine.get('total'), '.2f', 9)}{cell(mine.get('told_total'), '.2f', 7)}"
            f"{cell(mine.get('downtime'), '.2f', 9)}{cell(of['cpu_source_s'], '.2f', 7)}{cell(of['cpu_destination_s'], '.2f', 7)}"
            f"  {sparkline([move['downtime_ms'] for move in variant['moves']])}{failed}")


def row_lines(row, data):
    load = load_of(row)[0].partition(", ")[2]
    measured = row["dirty_bytes_per_s_measured"]
    lines = ["", f"{row['memory_bytes'] / 2**30:g} GiB of {MEMORY[data]}, {load}"
             + (f" (QEMU samples {measured / 1e6:.0f})" if row["dirty_bytes_per_s"] else "")
             + f", medians of {row['rounds']}",
             f"  {'':<26}{'total s':>8}{'told':>8}{'down ms':>10}{'max':>8}{'told':>8}{'gap':>8}{'wire MB':>9}{'MB/s':>7}"
             f"{'total:':>9}{'told:':>7}{'down:':>9}{'cpu s':>7}{'there':>7}  downtimes"]
    lines += [variant_line(name, variant, row["ratios"]) for name, variant in row["variants"].items()]
    ours = row["variants"]["understudy"]["median"] or {}
    if ours.get("downtime_parts_ms"):
        lines.append("  our downtime: " + ", ".join(f"{name} {value:.1f}" for name, value in ours["downtime_parts_ms"].items()
                                                    if value is not None) + " ms")
    moves = row["variants"]["understudy"]["moves"]
    taken_back = sum(move["told"].get("taken_back", 0) for move in moves)
    if taken_back:
        lines.append(f"  ours took {taken_back} late last checkpoints back in {len(moves)} moves; the guest stood still "
                     f"{sum(move['told']['taken_back_ms'] for move in moves):.0f} ms for them, which is in no downtime")
    return lines


def table(result):
    where, options = result["environment"], result["options"]
    lines = [f"guest by {where['accelerator']}, load {where['load_average_before'][0]:.1f} to "
             f"{where['load_average_after'][0]:.1f}", f"--max-downtime {options['max_downtime']} ms (QEMU: downtime-limit), "
             f"{options['lanes']} lanes (QEMU: multifd-channels)"]
    for row in result["rows"]:
        lines += row_lines(row, options["data"])
    lines += ["", "total: from the order, the start of the destination's QEMU included, to the guest running there; down: the "
              "source's last", "STOP to the destination's RESUME, as the QEMUs say; told: as the engine or query-migrate says; "
              "gap: between two ticks", "on the guest's console; wire: both ways, headers included; total:, told:, down: "
              "ours divided by that row's;", "cpu s, there: at the source and at the destination, without the guest's own"]
    return "\n".join(lines)
