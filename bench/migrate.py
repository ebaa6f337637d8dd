#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How a guest moves, with this engine and with QEMU's own migration: `understudy bench migrate`.

Two network namespaces play the hosts. For each size and load one guest is booted, fills its memory with what does not
compress, and is then moved to and fro, by each variant in turn, as many rounds as are wanted; so every ratio is one of
the same guest, the same run and the same network. migrate_moves.py says what is measured where.
"""
import argparse
import os
import re
import shutil
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(SOURCE, "tests", "integration"), os.path.join(SOURCE, "bench")]
import frame  # noqa: E402
import migrate_moves as moves  # noqa: E402
import migrate_report as report  # noqa: E402
import warm  # noqa: E402

COLO_SINCE = 11  # 7.2's stops for good after a checkpoint, 10.0 and 10.1 were published broken, 11 has another handshake


def boot(run, options, memory_mib, dirty, row):
    guest = moves.Guest(run, options, memory_mib, dirty)
    guest.boot()
    if options.warm_up:
        # Somebody has to be the first to use memory that this machine has not used before. Not QEMU: a guest may not
        # survive that.
        guest.move("understudy")
    row["dirty_bytes_per_s_measured"] = guest.dirty_rate()
    return guest


def one_move(guest, name, number, held, variant, say):
    """Moves the guest; returns it, or None when it did not survive."""
    try:
        move = guest.move(name)
    except moves.Stayed as why:
        variant["failed"].append(str(why))
        say(why)
    except moves.Broken as why:
        variant["failed"].append(str(why))
        say(f"{str(why).splitlines()[0]}; another guest is booted")
        guest.close()
        return None
    else:
        variant["moves"].append({"round": number, "held_bytes": held, **move})
        say(f"{move['total_s']:.2f} s, down {move['downtime_ms']:.1f} ms")
    return guest


def measure_row(run, options, screen, keeper, memory_mib, dirty, names):
    load = f"dirtying {dirty / 1e6:.0f} MB/s" if dirty else "idle"
    row = {"memory_bytes": memory_mib << 20, "dirty_bytes_per_s": dirty, "dirty_bytes_per_s_measured": None,
           "rounds": options.rounds, "variants": {name: {"moves": [], "failed": []} for name in names}}
    screen.say(f"{memory_mib} MiB, {load}: the guest boots and fills its memory")
    guest = None
    try:
        for number in range(options.rounds):
            for name in names:
                guest = guest or boot(run, options, memory_mib, dirty, row)
                held = keeper.settle()
                time.sleep(options.settle)
                guest = one_move(guest, name, number, held, row["variants"][name], lambda text: screen.say(
                    f"round {number + 1}, {report.NAMES[name]}: {text}"))
    finally:
        if guest:
            guest.close()
    report.summarise(row)
    return row


def peers_here(wanted, able):
    """([peer], [note]): what this QEMU has been built without is left out, by name."""
    version = ".".join(map(str, able["version"]))
    chosen = [name for name in wanted if moves.PEERS[name][1] in able["compressions"]]
    notes = [f"{report.NAMES[name]} left out: QEMU {version} was built without {moves.PEERS[name][1]}"
             for name in wanted if name not in chosen]
    why = "this bench cannot drive it"
    if able["version"] < (COLO_SINCE,):
        why = f"it is left to QEMU {COLO_SINCE} and later, and this is {version}"
    return chosen, [*notes, f"QEMU's COLO is not measured: {why}"]


def held(options, screen):
    """(keeper of this machine's free memory, [note])"""
    wanted = options.hold_memory == "on" or (options.hold_memory == "auto" and not options.quick and warm.worth_it())
    if not wanted:
        return warm.Keeper(False), []
    screen.say("free memory is held, so that no host beneath takes it back between moves")
    keeper = warm.Keeper(True)
    return keeper, ["before each move free memory was held (held_bytes of the move), and let go of as it was wanted: what a host "
                    "beneath takes back is slow to touch again, for whoever moves (--hold-memory off leaves it)"]


def pacing(path="/proc/sys/net/ipv4/tcp_congestion_control"):
    """[note], if TCP is not the same for everybody."""
    with open(path) as file:
        name = file.read().strip()
    if not name.startswith("bbr"):
        return []
    return [f"TCP here goes by {name}, which paces QEMU's connections; ours go by cubic on a short path (the same for all: sysctl "
            "net.ipv4.tcp_congestion_control=cubic)"]


def measure(run, options, screen):
    rows = []
    peers, notes = peers_here(options.peers, moves.abilities(run))
    keeper, note = held(options, screen)
    try:
        for memory_mib in options.memory:
            for dirty in [0] * (not options.no_idle) + [options.dirty] * bool(options.dirty):
                rows.append(measure_row(run, options, screen, keeper, memory_mib, dirty, ["understudy", *peers]))
    finally:
        keeper.close()
    return {"rows": rows, "left_out": [*notes, *note, *(pacing() if peers else [])]}


def size(text):
    """MiB."""
    found = re.fullmatch(r"(\d+)([MG])(iB)?", text)
    mib = int(found.group(1)) << (10 * (found.group(2) == "G")) if found else 0
    if not 128 <= mib <= 65536:
        raise argparse.ArgumentTypeError(f"{text} is no size from 128M to 64G")
    return mib


def sizes(text):
    return [size(part) for part in text.split(",")]


def rate(text):
    """Bytes a second."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no rate: bytes a second, with K, M or G")
    return int(found.group(1)) * 1000 ** " KMG".index(found.group(2) or " ")


def peers(text):
    if text in ("all", "none"):
        return list(moves.PEERS) if text == "all" else []
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in moves.PEERS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(moves.PEERS)}")
    return names


def parse_options(argv):
    parser = argparse.ArgumentParser(prog="understudy bench migrate", description=(
        "Boots a guest between two hosts that are network namespaces of this machine and moves it to and fro: with "
        "`understudy migrate` (TLS 1.3) and with QEMU's own migration, plain, with multifd, with TLS, and with both, and if "
        "wanted with multifd's compression. Needs root and what tools/install-dependencies.sh installs."))
    parser.add_argument("--memory", type=sizes, metavar="SIZE[,SIZE...]",
                        help="the guest's memory; a guest for each (default 1G)")
    parser.add_argument("--dirty", type=rate, metavar="RATE",
                        help="bytes a second that the guest writes in the second part of each size; 0: none (default 100M)")
    parser.add_argument("--no-idle", action="store_true", help="leave out the guest that writes nothing")
    parser.add_argument("--rounds", type=frame.number(1, 100), metavar="N", help="moves by each variant (default 3)")
    parser.add_argument("--max-downtime", type=frame.number(1, 10000), default=50, metavar="MS",
                        help="what both are told to keep (default 50)")
    parser.add_argument("--lanes", type=frame.number(1, 16), default=2, metavar="N",
                        help="our TLS connections, and QEMU's multifd channels (default 2)")
    parser.add_argument("--peers", type=peers, default=list(moves.PEERS)[:4], metavar="NAME[,NAME...]",
                        help=f"QEMU's own ways: of {', '.join(moves.PEERS)}; all; none (default the first four)")
    parser.add_argument("--data", choices=("random", "text", "mixed"), default="random",
                        help="what the guest fills its memory with; random does not compress (default random)")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false",
                        help="count the first move of a guest, too; else one by us comes before")
    parser.add_argument("--hold-memory", choices=("auto", "on", "off"), default="auto",
                        help="keep free memory from going back to a host beneath this machine (default auto: where one takes it "
                        "back, on up to 64 GiB, and not with --quick)")
    parser.add_argument("--quick", action="store_true", help="128M, 2M a second and one round, unless said otherwise")
    parser.add_argument("--settle", type=float, default=1.0, metavar="S", help="rest before each move (default 1)")
    parser.add_argument("--timeout", type=frame.number(1, 3600), default=120, metavar="S", help="bound on one move (default 120)")
    frame.add_outputs(parser)
    frame.add_programs(parser)
    options = parser.parse_args(argv)
    options.memory = options.memory or [128 if options.quick else 1024]
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.dirty is None:
        options.dirty = 2_000_000 if options.quick else 100_000_000
    return options


def main():
    missing = [name for name in ("qemu-system-x86_64", "ip", "nsenter") if not shutil.which(name)]
    keys = "memory", "dirty", "no_idle", "rounds", "max_downtime", "lanes", "peers", "data", "warm_up", "settle", \
        "hold_memory", "timeout"
    return frame.run("migrate", parse_options(sys.argv[1:]), keys, "network namespaces", missing, measure, report.describe,
                     report.table)


if __name__ == "__main__":
    frame.main("migrate", main)
