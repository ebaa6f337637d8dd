#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the integration tests: run.py [--build DIR] [--only PATTERN] [--list] [--json OUT] [--jobs N]

Each test runs in a process of its own, with a time limit, and leaves nothing behind: no process, no network
namespace, no file but the logs of a failure (BUILD/integration-logs/TEST). Needs root.
"""
import argparse
import concurrent.futures
import contextlib
import fnmatch
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import processes
import understudy_test

HERE = os.path.dirname(os.path.abspath(__file__))
PASSED, FAILED, SKIPPED = 0, 1, 77
LIMIT_S = int(os.environ.get("UNDERSTUDY_LIMIT_S", "120"))


def tests():
    """[(name, function)] in the order of the files and within them."""
    found = []
    names = [name[:-3] for name in sorted(os.listdir(HERE)) if name.startswith("test_") and name.endswith(".py")]
    for name in sorted(names, key=lambda name: (name != "test_takeover", name)):
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if attribute.startswith("test_") and callable(value) and value.__module__ == name:
                found.append((f"{name[5:]}.{attribute[5:]}", value))
    return found


def matches(name, pattern):
    return any(part in name or fnmatch.fnmatch(name, part) for part in pattern.split(",")) if pattern else True


def run_one(name, build, report, booted):
    """In the test's own process."""
    processes.become_subreaper()
    function = dict(tests())[name]
    directory = tempfile.mkdtemp(prefix="us-")
    seed = int(os.environ.get("UNDERSTUDY_SEED", "0")) or int.from_bytes(os.urandom(4), "big") or 1
    run, code, text = None, FAILED, ""
    try:
        run = understudy_test.Run(name, build, directory, seed, booted=booted)
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(AssertionError("the test's time is up")))
        note = function(run)
        code, text = PASSED, note or ""
    except understudy_test.Skip as skip:
        code, text = SKIPPED, str(skip)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        steps = " < ".join(f"{os.path.basename(step.filename)}:{step.lineno}" for step in reversed(place[1:]))
        text = f"{error if isinstance(error, AssertionError) else repr(error)}\nat {steps}\nseed {seed}"
    finally:
        logs = os.path.join(build, "integration-logs", name)
        shutil.rmtree(logs, ignore_errors=True)
        if run:
            if code == FAILED:
                run.log(text)
            run.close()
            if code == FAILED:
                understudy_test.keep_logs(run, logs)
        shutil.rmtree(directory, ignore_errors=True)
    with open(report, "w") as file:
        json.dump({"code": code, "text": text, "cpu": cpu_seconds()}, file)


def cpu_seconds():
    """What this process and everything that it has reaped have used: close() leaves nothing unreaped."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run_child(name, build, booted):
    """Starts the test's process, waits, cleans up behind it; (code, text, seconds, CPU seconds)."""
    began = time.monotonic()
    handle, report = tempfile.mkstemp(prefix="us-report-")
    os.close(handle)
    child = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--build", build, "--one", name, report,
                              booted])
    try:
        child.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            processes.end_descendants(child.pid)
            child.kill()
            child.wait()
    for suffix in "a", "b", "e", "g", "o":
        if os.path.exists(f"/run/netns/us{child.pid}{suffix}"):
            subprocess.run(["ip", "netns", "del", f"us{child.pid}{suffix}"], capture_output=True)
    try:
        with open(report) as file:
            result = json.load(file)
    except ValueError:
        result = {"code": FAILED, "text": f"the test's process ended with {child.returncode} and no result"}
    os.unlink(report)
    return result["code"], result["text"], time.monotonic() - began, result.get("cpu", 0.0)


@contextlib.contextmanager
def booted_guests(build):
    """The directory where guests that have booted wait for the tests of this run (booted.py): many times 80 MB."""
    for name in os.listdir(build):
        kind, _, pid = name.partition("-")
        if kind == "booted" and not processes.alive(int(pid)):
            shutil.rmtree(os.path.join(build, name))
    directory = os.path.join(build, f"booted-{os.getpid()}")
    os.mkdir(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def main():
    parser = argparse.ArgumentParser(description="Run the integration tests.")
    parser.add_argument("--build", default="build", help="meson build directory (default: build)")
    parser.add_argument("--only", help="tests whose name contains or matches one of these (commas)")
    parser.add_argument("--list", action="store_true", help="name the tests and end")
    parser.add_argument("--json", help="write a summary here")
    parser.add_argument("--jobs", type=int, default=1, help="tests at a time (default: 1)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    if options.one:
        return run_one(options.one[0], build, *options.one[1:])
    chosen = [name for name, _ in tests() if matches(name, options.only)]
    if options.list:
        print("\n".join(chosen))
        return 0
    if not chosen:
        print(f"no test matches {options.only}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the integration tests need root (network namespaces, ptrace)", file=sys.stderr)
        return 2
    understudy_test.find_binary(build)
    understudy_test.guest_image(build)
    processes.become_subreaper()
    summary = {"passed": 0, "failed": 0, "skipped": [], "failures": [], "seconds": 0.0, "tests": []}
    began = time.monotonic()
    with booted_guests(build) as booted, concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        work = [(name, pool.submit(run_child, name, build, booted)) for name in chosen]
        for name, future in work:
            code, text, seconds, cpu = future.result()
            word = {PASSED: "ok", SKIPPED: "skip"}.get(code, "FAIL")
            line = f"{word:4} {name} ({seconds:.1f} s, {cpu:.1f} of CPU)"
            summary["tests"].append({"name": name, "seconds": round(seconds, 2), "cpu": round(cpu, 2)})
            print(line + (f": {text}" if text and code != FAILED else ""), flush=True)
            if code == FAILED:
                print("     " + text.replace("\n", "\n     "), flush=True)
                summary["failed"] += 1
                summary["failures"].append({"name": name, "reason": text.split("\n")[0]})
            elif code == SKIPPED:
                summary["skipped"].append({"name": name, "reason": text})
            else:
                summary["passed"] += 1
    processes.end_descendants(os.getpid())
    summary["seconds"] = round(time.monotonic() - began, 1)
    print(f"{summary['passed']} passed, {summary['failed']} failed, {len(summary['skipped'])} skipped, "
          f"{summary['seconds']} s")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(summary, file, indent=1)
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
