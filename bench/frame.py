# SPDX-License-Identifier: Apache-2.0
"""What `understudy bench protect` and `bench migrate` have in common: a run that leaves nothing behind."""
import json
import os
import shutil
import signal
import sys
import tempfile

import processes
import protect_report
import understudy_test


def run(name, options, needs, missing, measure, table):
    """Checks what is needed, measures (measure(run, options, screen)), prints the table, writes the JSON; 0."""
    if os.geteuid():
        sys.exit(f"understudy bench {name}: needs root, for {needs}")
    if missing:
        sys.exit(f"understudy bench {name}: not installed: {', '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    screen = protect_report.Screen(sys.stderr)
    processes.become_subreaper()
    build = os.path.abspath(options.build)
    os.makedirs(build, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="us-")  # AF_UNIX paths are short
    hosts, done = None, False
    try:
        screen.say("the guest's images (made once)")
        hosts = understudy_test.Run("bench", build, directory, seed=1, understudy=options.understudy)
        result = measure(hosts, options, screen)
        done = True
    finally:
        if hosts:
            hosts.close()
        if done:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs are in {directory}", file=sys.stderr)
    if options.json != "-":
        print(table(result))
    if options.json:
        with sys.stdout if options.json == "-" else open(options.json, "w") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    return 0


def main(name, body):
    """body() under the usual ends of a command."""
    try:
        sys.exit(body())
    except KeyboardInterrupt:
        sys.exit(130)
    except AssertionError as error:
        sys.exit(f"understudy bench {name}: {error}")
