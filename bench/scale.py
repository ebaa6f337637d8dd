#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How the engine scales on this machine: `understudy bench scale`.

Theory of operation

`understudy bench replicate` is run once for each point of three lines: lanes, memory, guests at once; everything else stays
as it is at their common beginning (one lane, the first size, one guest). Each point brings its own ceiling, measured in the
same rounds with as many connections.

Both ends are on this machine, so it runs out of cores early. How early is measured: the first point of a line keeps `busy`
cores busy (processor seconds a second), and so

    linear(n) = throughput(first) * min(n, cores / busy)        efficiency(n) = throughput(n) / linear(n)

that is, n times as much is expected as long as there are cores for it, and no more than all cores give after that. Memory has
no line of that kind: its efficiency is the throughput divided by that of the first size. A fourth line, vCPUs, is of something
else: scale_vcpus.py.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(SOURCE, "tests", "integration"), os.path.join(SOURCE, "bench")]
import figures  # noqa: E402
import frame  # noqa: E402
import scale_vcpus as vcpus  # noqa: E402

MEASURES = {"first_copy": "first copy", "epochs": "epochs"}
SPARE = 0.8  # of the available memory, at most


def available_bytes():
    with open("/proc/meminfo") as file:
        return int(re.search(r"^MemAvailable:\s+(\d+)", file.read(), re.M).group(1)) * 1024


def needed_bytes(point, epoch_bytes):
    """Both memories of every guest, and what stages epochs: one on the primary, two on the standby."""
    return point["vms"] * (2 * point["size"] + 3 * epoch_bytes + (64 << 20))


def points(options, available):
    """([point], [note]): a point is one replicate, and which lines it is on; what has no room is left out, by name."""
    first = {"lanes": 1, "size": options.sizes[0], "vms": 1}
    wanted, left_out = {}, []
    for line, values in ("lanes", range(1, options.lanes + 1)), ("size", options.sizes), ("vms", range(1, options.vms + 1)):
        for value in values:
            point = {**first, line: value}
            need = needed_bytes(point, options.epoch_size)
            if need > available * SPARE:
                left_out.append(f"{line} {told(line, value)} left out: needs {need / 1e9:.1f} GB, of {available / 1e9:.1f} GB that "
                                f"are free {100 * SPARE:.0f} % are used at most")
            else:
                wanted.setdefault(tuple(point.values()), (point, []))[1].append(line)
    return list(wanted.values()), left_out


def told(line, value):
    return f"{value / 2**20:g} MiB" if line == "size" else str(value)


def replicate(options, point):
    argv = [frame.program(options), "bench", "replicate", "--json", "--lanes", str(point["lanes"]), "--size", str(point["size"]),
            "--vms", str(point["vms"]), "--rounds", str(options.rounds), "--epochs", str(options.epochs), "--epoch-size",
            str(options.epoch_size), "--data", options.data]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def samples(document, name):
    return next((figure["samples"] for figure in document["figures"] if figure["name"] == name), [])


def busy_cores(document, measure):
    """Processor seconds a second, in each round."""
    spent = [a + b for a, b in zip(samples(document, f"{measure}.cpu_primary"), samples(document, f"{measure}.cpu_standby"))]
    return [per_gb * rate for per_gb, rate in zip(spent, samples(document, f"{measure}.throughput"))]


def linear(line, value, busy, cores):
    """How many times the first point's throughput is expected."""
    return 1.0 if line == "size" else min(float(value), max(1.0, cores / busy))


def measure(options, screen):
    chosen, left_out = points(options, available_bytes())
    done = []
    for number, (point, lines) in enumerate(chosen):
        screen.say(f"{number + 1} of {len(chosen)}: {point['lanes']} lanes, {told('size', point['size'])}, {point['vms']} guests")
        done.append({"point": point, "lines": lines, "result": replicate(options, point)})
    found, notes = vcpus.measure(options, screen)
    return {"points": done, "vcpus": found}, left_out + notes


def line_rows(own, line, measure, cores):
    """[(value, samples, samples of the ceiling, linear factor, busy cores)] of one line, in its order."""
    chosen = [one for one in own["points"] if line in one["lines"] and samples(one["result"], f"{measure}.throughput")]
    if not chosen:
        return []
    busy = statistics.median(busy_cores(chosen[0]["result"], measure))
    return [(one["point"][line], samples(one["result"], f"{measure}.throughput"), samples(one["result"], "ceiling.throughput"),
             linear(line, one["point"][line], busy, cores), statistics.median(busy_cores(one["result"], measure)))
            for one in chosen]


TITLES = {"lanes": "lanes", "size": "guest memory, MiB", "vms": "guests at once"}
POINTS = {"lanes": "{} lanes", "size": "{} MiB", "vms": "{} guests"}


def describe(result, own):
    cores = result.document["environment"]["cores"]
    for line in TITLES:
        for measure, words in MEASURES.items():
            rows = line_rows(own, line, measure, cores)
            for value, found, ceiling, factor, _ in rows:
                where = {"x": value >> 20 if line == "size" else value, "x_title": TITLES[line]}
                tag, title = f"{line}-{where['x']}.{measure}", f"{POINTS[line].format(where['x'])}: {words}"
                group, first = f"{words} by {TITLES[line]}", statistics.median(rows[0][1])
                result.figure(f"{tag}.throughput", title, "GB/s", "higher", found, group, **where)
                result.figure(f"{tag}.ceiling", f"{title}, ceiling", "GB/s", "higher", ceiling, group, "ceiling", **where)
                result.figure(f"{tag}.linear", f"{title}, linear until cores run out", "GB/s", "higher", [first * factor], group,
                              "base", **where)
                result.ratio(f"{tag}.throughput", f"{tag}.linear", f"{title}, of linear", "higher",
                             [sample / (first * factor) for sample in found], "base")
                result.ratio(f"{tag}.throughput", f"{tag}.ceiling", f"{title}, of its ceiling", "higher",
                             figures.quotients(found, ceiling), "ceiling")
    vcpus.describe(result, own["vcpus"])


def table(document):
    cores = document["environment"]["cores"]
    options = document["options"]
    found = [f"{cores} cores, on which both ends run; {options['data']} data, medians of {options['rounds']} rounds"]
    for line, title in TITLES.items():
        for measure, words in MEASURES.items():
            rows = line_rows(document, line, measure, cores)
            if not rows:
                continue
            found += ["", f"{words}, by {title}", f"  {'':>8}{'GB/s':>8}{'of linear':>11}{'of ceiling':>12}{'busy cores':>12}"]
            first = statistics.median(rows[0][1])
            for value, of, ceiling, factor, busy in rows:
                rate = statistics.median(of)
                share = statistics.median(figures.quotients(of, ceiling))
                found.append(f"  {value >> 20 if line == 'size' else value:>8}{rate:>8.2f}{100 * rate / (first * factor):>9.0f} %"
                             f"{100 * share:>10.0f} %{busy:>12.1f}  {figures.sparkline(of)}")
    return "\n".join(found + vcpus.table(document["vcpus"]))


def size(text):
    """Bytes."""
    match = re.fullmatch(r"(\d+)([MG])(iB)?", text)
    number = int(match.group(1)) << (20 if match.group(2) == "M" else 30) if match else 0
    if not 1 << 20 <= number <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text} is no size from 1M to 1024G")
    return number


def sizes(text):
    return sorted({size(part) for part in text.split(",")})


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench scale", description=(
        "Runs understudy bench replicate with more lanes, more memory and more guests at once, and says how far the throughput "
        "is from linear until the cores run out. Points for which this machine has too little memory are left out, by name."))
    parser.add_argument("--lanes", type=frame.number(1, 16), metavar="N", help="1 to so many (default: the cores, but 4 to 16)")
    parser.add_argument("--sizes", type=sizes, metavar="SIZE[,SIZE...]",
                        help="guest memory, with M or G (default 256M,512M,1G,2G,4G,8G)")
    parser.add_argument("--vms", type=frame.number(1, 16), default=4, metavar="N", help="1 to so many guests (default 4)")
    parser.add_argument("--vcpus", type=frame.number(0, 16), metavar="N", help=(
        "of a guest in our own VMM, 1, 2, 4 ... to so many; 0: leave that out (default 4)"))
    parser.add_argument("--rounds", type=frame.number(1, 100), metavar="N", help="of each point (default 5)")
    parser.add_argument("--epochs", type=frame.number(0, 100000), metavar="N", help="in each round (default 16)")
    parser.add_argument("--epoch-size", type=size, metavar="SIZE", help="dirty memory of each (default 16M)")
    parser.add_argument("--data", choices=("random", "zero", "text", "mixed"), default="random", help="(default random)")
    parser.add_argument("--quick", action="store_true", help="small sizes and three rounds, unless said otherwise")
    frame.add_outputs(parser)
    frame.add_programs(parser)
    options = parser.parse_args(argv)
    small = options.quick
    options.lanes = options.lanes or min(16, max(4, len(os.sched_getaffinity(0))))
    options.sizes = options.sizes or sizes("32M,64M" if small else "256M,512M,1G,2G,4G,8G")
    options.rounds = options.rounds or (3 if small else 5)
    options.vcpus = (2 if small else 4) if options.vcpus is None else options.vcpus
    options.epochs = (4 if small else 16) if options.epochs is None else options.epochs
    options.epoch_size = options.epoch_size or size("4M" if small else "16M")
    return options


def main():
    options = parse_options(sys.argv[1:])
    keys = "lanes", "sizes", "vms", "vcpus", "rounds", "epochs", "epoch_size", "data"
    result = figures.Result("scale", {key: getattr(options, key) for key in keys}, frame.program(options))
    own, left_out = measure(options, frame.Screen(sys.stderr))
    describe(result, own)
    result.document["notes"] += left_out
    if not own["points"]:
        raise AssertionError("; ".join(left_out))
    document = result.finish(**own)
    frame.tell(options, document, "\n".join([*figures.head(document), "", table(document), *figures.remarks(document)]))
    return 0


if __name__ == "__main__":
    frame.main("scale", main)
