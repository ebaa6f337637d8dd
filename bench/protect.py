#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What protection costs a guest, beside the same guest unprotected: `understudy bench protect`. protect_redis.py measures a
server, protect_bare.py a workload without an operating system, in our own VMM and in QEMU."""
import argparse
import os
import re
import shutil
import sys

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(SOURCE, "tests", "integration"), os.path.join(SOURCE, "bench")]
import frame  # noqa: E402
import protect_bare as bare  # noqa: E402
import protect_bare_report as bare_report  # noqa: E402
import protect_redis as redis  # noqa: E402
import protect_report as redis_report  # noqa: E402

# Options of one guest alone, with their defaults: as they are, and with --quick.
REDIS = {"clients": (50, 50), "requests": (5000, 2000), "fsync": ("always", "always"), "kills": (3, 1)}
BARE = {"vmm": (["kvm", "qemu"], ["kvm", "qemu"]), "cpus": ([1], [1]), "rate": (["1000", "max"], ["1000"]),
        "working_set": (16, 8), "pattern": ("random", "random"), "write": ("line", "line"), "data": ("random", "random"),
        "check": (10, 10), "seconds": (3, 1)}


def listed(word, pattern, what):
    """A parser of words with commas between, each once."""
    def parse(text):
        found = list(dict.fromkeys(text.split(",")))
        for one in found:
            if not re.fullmatch(pattern, one):
                raise argparse.ArgumentTypeError(f"{one} is no {what}")
        return list(map(word, found))
    return parse


def working_set(text):
    """MiB."""
    found = re.fullmatch(r"(\d+)([MG])(iB)?", text)
    mib = int(found.group(1)) << (10 * (found.group(2) == "G")) if found else 0
    if not 1 <= mib <= 2048:  # below the hole of every machine
        raise argparse.ArgumentTypeError(f"{text} is no size from 1M to 2G")
    return mib


def add_redis(parser):
    group = parser.add_argument_group("with --guest redis")
    group.add_argument("--clients", type=frame.number(2, 500), metavar="N", help="connections (default 50)")
    group.add_argument("--requests", type=frame.number(200, 10000000), metavar="N",
                       help="SETs of a row; a fiftieth with one client (default 5000)")
    group.add_argument("--fsync", choices=("always", "everysec"),
                       help="of the append-only file, with many clients (default always)")
    group.add_argument("--kills", type=frame.number(0, 100), metavar="N", help="takeovers (default 3)")


def add_bare(parser):
    group = parser.add_argument_group("with --guest bare")
    group.add_argument("--vmm", type=listed(str, "kvm|qemu", "VMM: kvm, qemu"), metavar="NAME[,NAME]",
                       help="our own, or QEMU (default kvm,qemu)")
    group.add_argument("--cpus", type=listed(int, "[1-9]|1[0-6]", "number of vCPUs from 1 to 16"), metavar="N[,N...]",
                       help="vCPUs (default 1)")
    group.add_argument("--rate", type=listed(str, r"[1-9]\d{0,7}|max", "number of page writes a second, and not max"),
                       metavar="N[,N...]", help="page writes a second of all vCPUs, or max (default 1000,max)")
    group.add_argument("--working-set", type=working_set, metavar="SIZE", help="memory that is written, with M or G (default 16M)")
    group.add_argument("--pattern", choices=("random", "sequential", "hot"), help="order of its pages (default random)")
    group.add_argument("--write", choices=("line", "page"), help="64 bytes of a page, or all of it (default line)")
    group.add_argument("--data", choices=("random", "text", "zero"), help="what is written (default random)")
    group.add_argument("--check", type=frame.number(0, 10000000), metavar="N",
                       help="pages that the guest checks a second (default 10)")
    group.add_argument("--seconds", type=frame.number(1, 3600), metavar="S", help="of a round (default 3)")


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench protect", description=(
        "Boots a guest between two hosts that are network namespaces of this machine, and measures it unprotected and "
        "protected. redis: a Linux guest with Redis, asked from outside by redis-benchmark (SET), then killed under a "
        "client. bare: a workload without an operating system, in our own VMM and in QEMU, which says how far it is. Needs "
        "root and what tools/install-dependencies.sh installs. The Linux guest is made once, from Debian's packages."))
    parser.add_argument("--guest", choices=("redis", "bare"), default="redis", help="(default redis)")
    parser.add_argument("--interval", type=frame.number(1, 1000), default=25, metavar="MS",
                        help="time between checkpoints (default 25)")
    parser.add_argument("--rounds", type=frame.number(1, 100), metavar="N",
                        help="samples of each row; redis: parts in which its requests are sent (default 5)")
    parser.add_argument("--quick", action="store_true", help="less of all, unless said otherwise")
    add_redis(parser)
    add_bare(parser)
    frame.add_outputs(parser)
    frame.add_programs(parser)
    options = parser.parse_args(argv)
    own, others = (REDIS, BARE) if options.guest == "redis" else (BARE, REDIS)
    for name in others:
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is not for --guest {options.guest}")
    for name, defaults in own.items():
        if getattr(options, name) is None:
            setattr(options, name, defaults[options.quick])
    options.rounds = options.rounds or (3 if options.quick and options.guest == "bare" else 5)
    return options


def main():
    options = parse_options(sys.argv[1:])
    chosen, report, own = (redis, redis_report, REDIS) if options.guest == "redis" else (bare, bare_report, BARE)
    programs = list(chosen.PROGRAMS)
    if options.guest == "bare":
        programs += ["qemu-system-x86_64"] * ("qemu" in options.vmm)
        if options.vmm == ["kvm"]:
            frame.need_kvm("protect", options)
    missing = [name for name in programs if not shutil.which(name)]
    return frame.run("protect", options, ("guest", "rounds", "interval", *own), "network namespaces, bridges and taps", missing,
                     chosen.measure, report.describe, report.table)


if __name__ == "__main__":
    frame.main("protect", main)
