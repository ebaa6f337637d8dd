# SPDX-License-Identifier: Apache-2.0
"""A result of `understudy bench`, as schema.json and docs/bench.md have it: made, read, and told in lines of text."""
import json
import math
import statistics
import subprocess
import sys
import time

SCHEMA = "understudy-bench/1"
LISTS = ("figures", "ratios", "histograms", "timelines")
NOISY_SHARE = 0.05  # of the time of all cores, taken by others while nothing of ours ran


class NoResult(Exception):
    """A file is no result; which, and why."""


# -- making one -----------------------------------------------------------------------------------------------
def environment(understudy):
    """The machine, as the program itself finds it; 0.3 seconds of all cores."""
    done = subprocess.run([understudy, "bench", "environment"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"understudy bench environment ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def version(understudy):
    done = subprocess.run([understudy, "--version"], capture_output=True, text=True, timeout=20)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.split() else "unknown"


class Result:
    """What one run measures. `own` are the members that only this subcommand has."""

    def __init__(self, subcommand, options, understudy):
        self.understudy, self.began = understudy, time.monotonic()
        self.document = {
            "schema": SCHEMA, "tool": {"name": "understudy", "version": version(understudy)}, "subcommand": subcommand,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": 0.0, "options": options,
            "environment": environment(understudy), **{name: [] for name in LISTS}, "notes": []}

    def figure(self, name, title, unit, better, samples, group=None, who="ours", **x):
        """`x`, `x_title`: where it lies in a plot of its group. Without samples there is no figure."""
        samples = [sample for sample in samples if sample is not None]
        if samples:
            self.document["figures"].append({"name": name, "title": title, "unit": unit, "better": better,
                                             "group": group or title, "who": who, **x, "samples": samples})

    def ratio(self, of, to, title, better, samples, who):
        samples = [sample for sample in samples if sample is not None]
        if samples:
            self.document["ratios"].append({"of": of, "to": to, "title": title, "better": better, "who": who,
                                            "samples": samples})

    def histogram(self, name, title, unit, better, found):
        """`found`: what histogram() or joined() say of the samples."""
        self.document["histograms"].append({"name": name, "title": title, "unit": unit, "better": better, **found})

    def timeline(self, title, unit, rows):
        """rows: [(title, [(part, length)])]"""
        rows = [{"title": row, "parts": [{"name": name, "length": max(0.0, length)} for name, length in parts]}
                for row, parts in rows if parts]
        if rows:
            self.document["timelines"].append({"title": title, "unit": unit, "rows": rows})

    def finish(self, **own):
        after = environment(self.understudy)
        where = self.document["environment"]
        where["noise"]["after"] = after["noise"]["before"]
        where["load_average_after"] = after["load_average_before"]
        self.document["seconds"] = time.monotonic() - self.began
        self.document.update(own)
        return self.document


# -- numbers --------------------------------------------------------------------------------------------------
def quotients(ours, theirs):
    """Round by round, where both were measured."""
    return [a / b for a, b in zip(ours, theirs) if a is not None and b]


def percentile(ordered, percent):
    """The smallest of ascending samples that so many percent do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def bucket_top(value):
    """32 steps in every power of two, as base/histogram.h has them for whole numbers; here for any above 0."""
    if value <= 0:
        return 0.0
    fraction, exponent = math.frexp(value)  # 0.5 <= fraction < 1
    return math.ldexp(math.ceil(fraction * 64) / 64, exponent)


def histogram(samples):
    """Of at least one sample; the percentiles are those of the samples."""
    ordered, buckets = sorted(samples), {}
    for sample in ordered:
        top = bucket_top(sample)
        buckets[top] = buckets.get(top, 0) + 1
    return {"count": len(ordered), "min": ordered[0], "p50": percentile(ordered, 50), "p90": percentile(ordered, 90),
            "p99": percentile(ordered, 99), "max": ordered[-1], "buckets": [[top, count] for top, count in buckets.items()]}


def joined(parts, least, most):
    """Several lists of buckets [top, count] as one histogram; percentiles are the tops of their buckets."""
    counts = {}
    for top, count in (bucket for part in parts for bucket in part):
        counts[top] = counts.get(top, 0) + count
    buckets, whole = sorted(counts.items()), sum(counts.values())

    def at(percent):
        seen = 0
        for top, count in buckets:
            seen += count
            if seen >= max(1, math.ceil(whole * percent / 100)):
                return min(top, most)
    return {"count": whole, "min": least, "p50": at(50), "p90": at(90), "p99": at(99), "max": most,
            "buckets": [list(bucket) for bucket in buckets]}


def of_status(times):
    """A time of `status`, whose buckets are cumulative and few, as a histogram; None while nothing was counted. The bounds of its
    buckets are all that is known of `min` (the one below) and p90 (the one above)."""
    if not times["count"]:
        return None
    bounds = [[0.0, 0], *times["buckets"], [max(times["max"], times["buckets"][-1][0]), times["count"]]]
    steps = [(below, top, count - before) for (below, before), (top, count) in zip(bounds, bounds[1:]) if count > before]
    found = joined([[[top, count] for _, top, count in steps]], steps[0][0], times["max"])
    return {**found, "p50": times["p50"], "p90": max(times["p50"], min(found["p90"], times["p99"])), "p99": times["p99"]}


# -- reading one ----------------------------------------------------------------------------------------------
def read(path):
    """The result in a file (-: standard input). What is checked is what everything here relies on; schema.json has all."""
    try:
        with (sys.stdin if path == "-" else open(path)) as file:
            document = json.load(file)
    except OSError as error:
        raise NoResult(f"{path}: {error.strerror}")
    except ValueError as error:
        raise NoResult(f"{path}: no JSON: {error}")
    try:
        check(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoResult(f"{path}: no result of understudy bench: {error!r}")
    return document


def write(document, path):
    """As JSON; -: standard output."""
    text = json.dumps(document, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    with open(path, "w") as file:
        file.write(text)


def check(document):
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"its schema is {found}, not {SCHEMA}")
    str.strip(document["subcommand"])
    str.strip(document["tool"]["version"])
    dict.keys(document["options"])
    dict.keys(document["environment"])
    for name in LISTS:
        list.copy(document[name])
    for figure in document["figures"] + document["ratios"]:
        if figure["better"] not in ("lower", "higher") or not figure["samples"]:
            raise ValueError(f"{name_of(figure)} has no direction or no samples")
        for sample in figure["samples"]:
            if isinstance(sample, bool) or not math.isfinite(sample):
                raise ValueError(f"{name_of(figure)} has a sample {sample}")
    for one in document["histograms"]:
        if not one["buckets"] or not all(count > 0 and math.isfinite(top) for top, count in one["buckets"]):
            raise ValueError(f"the histogram {one['name']} has no buckets, or empty ones")
    for one in document["timelines"]:
        for row in one["rows"]:
            sum(part["length"] for part in row["parts"])


def name_of(figure):
    return figure["name"] if "name" in figure else f"{figure['of']}/{figure['to']}"


def noise_note(document):
    """A sentence when others had much of the machine, else None."""
    noise = document["environment"].get("noise", {})
    worst = max((noise[when]["stolen_share"] for when in noise), default=0.0)
    if worst <= NOISY_SHARE:
        return None
    return (f"this machine was not quiet: while the probe alone wanted the cores, others had {100 * worst:.0f} % of their time "
            f"(over {100 * NOISY_SHARE:.0f} % is much)")


# -- telling --------------------------------------------------------------------------------------------------
def sparkline(values):
    """bench/sparkline.c draws the same."""
    least, most = min(values, default=0), max(values, default=0)
    return "".join("▁▂▃▄▅▆▇█"[int((value - least) / (most - least) * 7 + 0.5) if most > least else 3] for value in values)


def squeeze(values, width):
    """At most so many values: each the median of its neighbours in order."""
    if len(values) <= width:
        return values
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [statistics.median(values[a:b]) for a, b in zip(edges, edges[1:])]


def show(value, unit=""):
    """With three figures that matter; bytes with a prefix."""
    if unit == "B":
        for power, prefix in (9, "G"), (6, "M"), (3, "k"):
            if abs(value) >= 10 ** power:
                return f"{show(value / 10 ** power)} {prefix}B"
    if value == 0:
        return f"0 {unit}".strip()
    digits = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:.{max(0, min(digits, 6))}f}"
    return f"{text} {unit}".strip()


def kvm(found):
    if not found["usable"]:
        return f"no KVM ({found['why']})"
    return "KVM" if found["cpu_virtualises"] else "KVM without the processor's help"


def machine(document):
    where = document["environment"]
    virtual = ", itself virtual" if where.get("virtual") else ""
    with_openssl = where.get("aes", "OpenSSL") == "OpenSSL" or document["options"].get("aes") == "openssl"
    aes = "" if with_openssl else f" with {where['aes']}"
    versions = (f"{where['qemu'].partition(' (')[0] or 'no QEMU'}, {' '.join(where['openssl'].split()[:2])}{aes}, "
                f"liburing {where['liburing']}")
    return (f"{where['cpu']}, {where['cores']} cores{virtual}, {where['memory_bytes'] / 2**30:.0f} GiB, {where['kernel']}, "
            f"{versions}, {kvm(where['kvm'])}")


def head(document):
    return [f"understudy {document['tool']['version']} bench {document['subcommand']}, {document['began']}, "
            f"{document['seconds']:.0f} s", machine(document)]


def remarks(document):
    found = list(filter(None, [*document.get("notes", []), noise_note(document)]))
    return ["", *found] if found else []


def lines(document):
    """All figures, with the samples as they came."""
    found = head(document) + [""]
    width = max(len(figure["title"]) for figure in document["figures"] + document["ratios"])
    found.append(f"{'':<{width}} {'median':>12} {'least':>12} {'most':>12}    n  samples")
    for figure in document["figures"]:
        found.append(line(figure["title"], figure["samples"], figure["unit"], width))
    if document["ratios"]:
        found += ["", "Ratios, each round against the other of the same round"]
        found += [line(ratio["title"], ratio["samples"], "", width) for ratio in document["ratios"]]
    for one in document["histograms"]:
        found += ["", f"{one['title']}: p50 {show(one['p50'], one['unit'])}, p90 {show(one['p90'], one['unit'])}, p99 "
                  f"{show(one['p99'], one['unit'])}, longest {show(one['max'], one['unit'])}, of {one['count']}"]
    return found + remarks(document)


def line(title, samples, unit, width):
    return (f"{title:<{width}} {show(statistics.median(samples), unit):>12} {show(min(samples), unit):>12} "
            f"{show(max(samples), unit):>12} {len(samples):>4}  {sparkline(squeeze(samples, 40))}")
