# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of `understudy bench` that are scripts have in common: options, and a run that leaves nothing behind."""
import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import figures
import page


class Screen:
    """Progress, apart from the results."""

    def __init__(self, to):
        self.to, self.began = to, time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=self.to, flush=True)


def number(least, most):
    def parse(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} to {most}")
        return value
    return parse


def writable(path):
    """Whoever measures for an hour wants to know at once where the result cannot go."""
    if path != "-":
        try:
            open(path, "a").close()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{path}: {error.strerror}")
    return path


def add_outputs(parser):
    parser.add_argument("--json", nargs="?", const="-", type=writable, metavar="OUT", help=(
        "write everything, with raw samples, to this file; without OUT, or -, to standard output instead of the table"))
    parser.add_argument("--html", type=writable, metavar="OUT", help="write a page with plots to this file")


def add_programs(parser):
    parser.add_argument("--build", metavar="DIR", default="build",
                        help="where the guest's images are made and kept (default: the build directory; installed: "
                             "/var/cache/understudy)")
    parser.add_argument("--understudy", metavar="PROGRAM", help="the program to measure (default: DIR/understudy)")


def program(options):
    return options.understudy or os.path.join(options.build, "understudy")


def tell(options, document, text):
    if options.json:
        figures.write(document, options.json)
    if options.html:
        page.write(document, options.html)
    if options.json != "-":
        print(text)


def with_hosts(name, options, needs, missing, measure):
    """measure(run) with two hosts, which are network namespaces, and nothing left of them afterwards."""
    import processes  # the harness of the integration tests, which only these need
    import understudy_test
    if os.geteuid():
        sys.exit(f"understudy bench {name}: needs root, for {needs}")
    if missing:
        sys.exit(f"understudy bench {name}: not installed: {', '.join(missing)}")
    processes.become_subreaper()
    build = os.path.abspath(options.build)
    os.makedirs(build, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="us-")  # AF_UNIX paths are short
    hosts, done = None, False
    try:
        hosts = understudy_test.Run("bench", build, directory, seed=getattr(options, "seed", 1), understudy=options.understudy)
        measure(hosts)
        done = True
    finally:
        if hosts:
            hosts.close()
        if done:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs are in {directory}", file=sys.stderr)


def run(name, options, keys, needs, missing, measure, describe, table):
    """measure(run, options, screen) gives the members that only this subcommand has; describe(result, own) makes figures of
    them. Prints the table of the whole, writes what is asked for; 0. `keys`: the options that say what was measured."""
    screen, whole = Screen(sys.stderr), {}

    def body(hosts):
        result = figures.Result(name, {key: getattr(options, key) for key in keys}, program(options))
        result.document["environment"]["accelerator"] = accelerator()
        own = measure(hosts, options, screen)
        describe(result, own)
        whole.update(result.finish(**own))
    with_hosts(name, options, needs, missing, body)
    tell(options, whole, "\n".join([*figures.head(whole), "", table(whole), *figures.remarks(whole)]))
    return 0


def need_kvm(name, options):
    """Ends at once, and says why, where our own VMM can make no guest."""
    import kvm
    why = kvm.obstacle(program(options))
    if why:
        sys.exit(f"understudy bench {name}: our own VMM can make no guest here: {why}")


def accelerator():
    from understudy_test import has_hardware_virtualisation
    return "kvm" if has_hardware_virtualisation() else "tcg"


def main(name, body):
    """body() under the usual ends of a command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(body())
    except KeyboardInterrupt:
        sys.exit(130)
    except AssertionError as error:
        sys.exit(f"understudy bench {name}: {error}")
