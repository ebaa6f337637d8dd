# SPDX-License-Identifier: Apache-2.0
"""What `understudy bench protect --guest bare` says of what it measured: figures of each row, ratios to the same guest
unprotected and of our own VMM to QEMU, a table."""
import statistics

import figures
from protect_report import describe_distributions, describe_memory

PAGE = 4096
MEMORY = "memory a second, written and captured"
VMMS = {"kvm": "own VMM", "qemu": "QEMU"}
SIDES = (("alpha", "primary"), ("beta", "standby"))


def title_of(row):
    return f"{VMMS[row['vmm']]}, {row['cpus']} vCPU{'s' * (row['cpus'] > 1)}, {rate_of(row['rate'])}"


def rate_of(rate):
    return "as fast as it can" if rate == "max" else f"{rate} writes/s"


def who_of(row):
    return "ours" if row["vmm"] == "kvm" else "peer"


def per_gigabyte(one, seconds):
    """Of memory that was captured."""
    gigabytes = one["pages_captured"] * PAGE / 1e9
    return seconds / gigabytes if gigabytes else None


# (name, in words, unit, better, value of a protected round)
ROUND = (
    ("pause_mean", "pause, mean of a round", "ms", "lower", lambda one: one["pause_mean_ms"]),
    ("checkpoints", "checkpoints a second", "1/s", "higher", lambda one: one["checkpoints_per_s"]),
    ("carried", "memory captured a second", "B", "higher", lambda one: one["pages_captured"] * PAGE / one["seconds"]),
    ("wire", "bytes on the wire a second", "B", "lower", lambda one: one["wire_bytes_per_s"]),
    ("cpu_primary", "processor time for a GB captured, primary's engine", "s/GB", "lower",
     lambda one: per_gigabyte(one, one["cpu_s"]["alpha"])),
    ("cpu_standby", "processor time for a GB captured, standby's engine", "s/GB", "lower",
     lambda one: per_gigabyte(one, one["cpu_s"]["beta"])),
    ("cpu_vmm", "processor time for a GB captured, VMM without its vCPUs", "s/GB", "lower",
     lambda one: per_gigabyte(one, one["vmm_cpu_s"])))


def describe_row(result, name, row, accelerator):
    title, who = title_of(row), who_of(row)

    def both(key, words, unit, better, value, group=None):
        """A figure of the unprotected and of the protected rounds."""
        for tag, when, rounds, whose in (f"{name}.base_{key}", "unprotected", row["base"], "base"), \
                (f"{name}.{key}", "protected", row["rounds"], who):
            result.figure(tag, f"{title}, {when}: {words}", unit, better, list(map(value, rounds)), group or words, whose)
    both("written", "memory the guest writes a second", "B", "higher", lambda one: one["writes_per_s"] * PAGE, MEMORY)
    result.ratio(f"{name}.written", f"{name}.base_written", f"{title}: progress, to unprotected", "higher", figures.quotients(
        *([one["writes_per_s"] for one in rounds] for rounds in (row["rounds"], row["base"]))), "base")
    if accelerator == "kvm":  # TCG's guests have a clock that stops with them
        both("stop", "the guest's longest stop in a round, as it sees it", "ms", "lower", lambda one: max(one["stops_ms"]))
        for tag, when, rounds in ("base_stops", "unprotected", row["base"]), ("stops", "protected", row["rounds"]):
            result.histogram(f"{name}.{tag}", f"{title}, {when}: the guest's longest stop in every 0.2 s", "ms", "lower",
                             figures.histogram([stop for one in rounds for stop in one["stops_ms"]]))
    both("silence", "longest silence at an observer outside", "ms", "lower", lambda one: one["silence_ms"])
    for key, words, unit, better, value in ROUND:
        result.figure(f"{name}.{key}", f"{title}: {words}", unit, better, [value(one) for one in row["rounds"]],
                      MEMORY if key == "carried" else words, who)
    describe_distributions(result, name, title, row)
    describe_memory(result, name, title, row)


def describe(result, own):
    result.document["notes"] += own.pop("left_out")
    result.document["environment"]["accelerator"] = own["accelerator"]
    for name, row in own["rows"].items():
        describe_row(result, name, row, own["accelerator"])
    for name, row in own["rows"].items():
        other = own["rows"].get(name.replace("kvm-", "qemu-", 1))
        if row["vmm"] != "kvm" or not other:
            continue
        for key, words, _, better, value in ROUND[:2]:
            result.ratio(f"{name}.{key}", f"{name.replace('kvm-', 'qemu-', 1)}.{key}",
                         f"{title_of(row)}: {words}, to QEMU", better,
                         figures.quotients(list(map(value, row["rounds"])), list(map(value, other["rounds"]))), "peer")


def line(row, accelerator):
    rounds, base = row["rounds"], row["base"]

    def middle(value, of=rounds):
        found = [value(one) for one in of if value(one) is not None]
        return statistics.median(found) if found else 0.0
    written, before = (middle(lambda one: one["writes_per_s"], of) for of in (rounds, base))
    cpu = [middle(lambda one, host=host: 1000 * one["cpu_s"][host] / max(one["checkpoints"], 1)) for host, _ in SIDES]
    stop = f"{max(max(one['stops_ms']) for one in rounds):>9.1f}" if accelerator == "kvm" else f"{'-':>9}"
    return (f"  {title_of(row):<36}{before:>9.0f}{written / before if before else 0:>7.2f}{middle(ROUND[1][4]):>9.1f}"
            f"{row['dirty_pages']['p50']:>7.0f}{row['pause_ms']['p50']:>9.2f}{row['pause_ms']['p99']:>9.2f}{stop}"
            f"{max(one['silence_ms'] for one in rounds):>9.1f}{row['output']['delay_ms']['p50']:>9.2f}"
            f"{row['output']['delay_ms']['p99']:>9.2f}{row['wire_bytes_per_s'] / 1e6:>8.2f}{cpu[0]:>8.2f}{cpu[1]:>7.2f}  "
            f"{figures.sparkline([one['writes_per_s'] for one in rounds])}")


def table(document):
    options, rows = document["options"], document["rows"].values()
    return "\n".join([
        f"bare guest by {document['accelerator']}: {options['working_set']} MiB, order {options['pattern']}, write="
        f"{options['write']}, data {options['data']}; a checkpoint every {options['interval']} ms; {options['rounds']} rounds of "
        f"{options['seconds']} s", "",
        f"  {'':<36}{'writes/s':>9}{'kept':>7}{'ckpt/s':>9}{'dirty':>7}{'pause50':>9}{'99 ms':>9}{'stop':>9}{'silence':>9}"
        f"{'delay50':>9}{'99 ms':>9}{'MB/s':>8}{'cpu ms':>8}{'there':>7}  writes/s, protected", *[line(row, document["accelerator"]) for row in rows], "",
        "writes/s: the guest's, unprotected; kept: the share of them under protection; dirty: pages of a checkpoint, p50; stop: the",
        "longest that the guest saw; silence: the longest at an observer outside, to whom it sends every 20 ms; MB/s: on the wire;",
        "cpu ms, there: processor time of a checkpoint, of the engines"])
