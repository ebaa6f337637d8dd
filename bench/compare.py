#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Two results of one subcommand: `understudy bench compare`.

Theory of operation

For each figure that both have, the medians are compared. How far the difference can be trusted is found by the bootstrap
(Efron, 1979): as many samples as there are on a side are drawn from that side's, with replacement, on both sides, and the
relative difference of the medians noted; 5000 times. Where 95 of 100 of these differences lie is the interval. If all of it is
on one side of nothing, and the medians differ by at least --least percent, the figure is better or worse; else no difference
was seen, which is not to say that there is none. The generator's seed is fixed and depends on the figure's name alone, so the
same two files always give the same answer.

How often that is wrong is counted by tests/bench/test_compare.py, and said in docs/bench.md. With fewer than 3 samples nothing
is said. The samples of one run share its machine's mood, which no interval knows: compare runs that were made in turn, and
prefer the ratios, which are made within a run.
"""
import argparse
import os
import random
import signal
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import figures  # noqa: E402

DRAWS = 5000
INTERVAL = 0.95
LEAST_SAMPLES = 3
BETTER, WORSE, SAME, FEW = "better", "worse", "no difference seen", "too few samples"
EXIT_FAILED, EXIT_REFUSED, EXIT_WORSE = 1, 4, 5
ENVIRONMENT = ("cpu", "cores", "memory_bytes", "kernel", "qemu", "openssl", "aes", "liburing", "accelerator")


def relative(a, b):
    """By how much b differs from a, of a."""
    return (b - a) / abs(a) if a else (0.0 if b == a else float("inf") if b > a else float("-inf"))


def interval(a, b, seed):
    """(low, high) of the relative difference of the medians, of 95 of 100 bootstrap draws."""
    draw = random.Random(seed).choices
    found = sorted(relative(statistics.median(draw(a, k=len(a))), statistics.median(draw(b, k=len(b)))) for _ in range(DRAWS))
    outside = int(DRAWS * (1 - INTERVAL) / 2)
    return found[outside], found[DRAWS - 1 - outside]


def judge(a, b, better, least, seed):
    """{"a", "b": medians; "difference", "low", "high": of a; "verdict"} of two lists of samples."""
    result = {"a": statistics.median(a), "b": statistics.median(b), "samples": [len(a), len(b)], "low": None, "high": None}
    result["difference"] = relative(result["a"], result["b"])
    if min(len(a), len(b)) < LEAST_SAMPLES:
        return {**result, "verdict": FEW}
    result["low"], result["high"] = interval(a, b, seed)
    grown = result["low"] > 0
    if not (grown or result["high"] < 0) or abs(result["difference"]) < least:
        return {**result, "verdict": SAME}
    return {**result, "verdict": BETTER if grown == (better == "higher") else WORSE}


def by_name(document, kind):
    return {figures.name_of(one): one for one in document[kind]}


def compare(a, b, least):
    """[judgement] of every figure and ratio of a, in its order; and the names that only one side has."""
    rows, alone = [], []
    for kind in "figures", "ratios":
        ours, theirs = by_name(a, kind), by_name(b, kind)
        alone += [name for name in (*ours, *theirs) if (name in ours) != (name in theirs)]
        rows += [{"name": name, "title": one["title"], "unit": one.get("unit", ""), "better": one["better"], "kind": kind,
                  **judge(one["samples"], theirs[name]["samples"], one["better"], least, name)}
                 for name, one in ours.items() if name in theirs]
    return rows, alone


def differences(a, b):
    """What makes the two incomparable, in words."""
    if a["subcommand"] != b["subcommand"]:
        return [f"the subcommand is {a['subcommand']} and {b['subcommand']}"]
    found = []
    for what, keys in ("options", {**a["options"], **b["options"]}), ("environment", ENVIRONMENT):
        found += [f"{what}: {key} is {a[what].get(key)} and {b[what].get(key)}" for key in keys
                  if a[what].get(key) != b[what].get(key)]
    usable = [document["environment"].get("kvm", {}).get("usable") for document in (a, b)]
    if usable[0] != usable[1]:
        found.append(f"environment: kvm usable is {usable[0]} and {usable[1]}")
    return found


def percent(value):
    return f"{100 * value:+.1f} %"


def row_line(row, width):
    between = f"{percent(row['low'])} to {percent(row['high'])}" if row["low"] is not None else "-"
    return (f"{row['title']:<{width}} {figures.show(row['a'], row['unit']):>12} {figures.show(row['b'], row['unit']):>12} "
            f"{percent(row['difference']):>9} {between:>22}  {row['verdict']}")


def tell(rows, alone, paths, documents):
    width = max((len(row["title"]) for row in rows), default=0)
    for letter, path, document in zip("AB", paths, documents):
        print(f"{letter}: {path}: version {document['tool']['version']}, {document['began']}")
        note = figures.noise_note(document)
        if note:
            print(f"   {note}")
    print(f"\n{'':<{width}} {'median of A':>12} {'of B':>12} {'B to A':>9} {'95 % of draws':>22}")
    for kind, title in ("figures", None), ("ratios", "Ratios, made within each run"):
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen and title:
            print(f"\n{title}")
        for row in chosen:
            print(row_line(row, width))
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in (BETTER, WORSE, SAME, FEW)}
    print("\nB is: " + ", ".join(f"{verdict} in {count}" for verdict, count in counts.items() if count))
    if alone:
        print(f"Only one of them has: {', '.join(alone)}")


def share(text):
    value = float(text)
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage from 0 to 1000")
    return value / 100


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench compare", description=(
        "Compares two results of one subcommand, figure by figure: is B better than A?"), epilog=(
        "Exit status: 0 nothing is worse, 1 a file cannot be read, 2 wrong usage, 4 refused because the two differ in what "
        "was measured or where, 5 something is worse."))
    parser.add_argument("a", metavar="A.json", help="the result before; - for standard input")
    parser.add_argument("b", metavar="B.json", help="the result after")
    parser.add_argument("--force", action="store_true", help="compare in spite of different options or machines")
    parser.add_argument("--least", type=share, default=0.01, metavar="PERCENT",
                        help="smaller differences are none (default 1)")
    parser.add_argument("--json", nargs="?", const="-", metavar="OUT",
                        help="write the judgements to this file; without OUT, or -, to standard output instead of the table")
    options = parser.parse_args(argv)
    if options.a == options.b == "-":
        parser.error("only one of the two can be standard input")
    return options


def main():
    options = parse_options(sys.argv[1:])
    try:
        a, b = figures.read(options.a), figures.read(options.b)
    except figures.NoResult as error:
        print(f"understudy bench compare: {error}", file=sys.stderr)
        return EXIT_FAILED
    differ = differences(a, b)
    for difference in differ:
        print(f"understudy bench compare: {'in spite of' if options.force else 'refused'}: {difference}", file=sys.stderr)
    if differ and not options.force:
        return EXIT_REFUSED
    rows, alone = compare(a, b, options.least)
    if options.json != "-":
        tell(rows, alone, (options.a, options.b), (a, b))
    if options.json:
        figures.write({"differences": differ, "rows": rows, "only_one_has": alone}, options.json)
    return EXIT_WORSE if any(row["verdict"] == WORSE for row in rows) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads with head(1) has read enough
    sys.exit(main())
