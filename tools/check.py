#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Builds and tests everything: check.py [--build DIR] [--only STEP,...]

Steps, those of a compiler or a sanitizer with a build directory of their own beside DIR:

    build        gcc builds everything
    gcc          every meson test in that but the fuzz corpora (unit, simulation, bench, the QEMU driver)
    asan         unit, simulation and fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer
    tsan         the tests of threaded code under ThreadSanitizer
    clang        clang builds everything, the libFuzzer programs too
    integration  whole hosts (tests/integration/run.py); needs root

The integration tests wait most of their time, for guests, for silences that must last, so the other steps run beside
them, one after another, in what is left of the processors; their compilers at a lower priority.

The very last line is the count over all of them. A step's full output is in DIR/check/STEP.log.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
JOBS = str(os.cpu_count() or 1)
INTEGRATION_JOBS = str(min(4, (os.cpu_count() or 1) + 1))
THREADED = re.compile(r"base|kvm|cache|delta|disks|gate|nbd|lane|checkpoint|restore|pipeline|replicate|stress|memory|worker|loop|events|fence|warm")
SANITIZERS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


class Results:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def counts(self):
        return f"{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"

    def fail(self, name, reason):
        self.failed.append((name, reason))

    def skip(self, name, reason):
        self.skipped.append((name, reason))

    def report(self):
        for title, found in ("skipped", self.skipped), ("FAILED", self.failed):
            for name, reason in found:
                print(f"{title}: {name}: {reason}")
        print(self.counts())


class Step:
    """One build directory and what is done in it, with a log."""

    def __init__(self, name, build):
        self.name, self.results = name, Results()
        self.build = build if name in ("build", "gcc", "integration") else f"{build}-{name}"
        logs = os.path.join(build, "check")
        os.makedirs(logs, exist_ok=True)
        self.log_path = os.path.join(logs, f"{name}.log")
        self.log = open(self.log_path, "w")

    def run(self, argv, environment=None, show=False):
        """Exit status; the output goes to the log, and to our own output if `show`."""
        self.log.write(f"$ {' '.join(argv)}\n")
        self.log.flush()
        process = subprocess.Popen(argv, cwd=SOURCE, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                   env={**os.environ, **SANITIZERS, **(environment or {})})
        for line in process.stdout:
            self.log.write(line)
            if show:
                print(line, end="", flush=True)
        return process.wait()

    def tail(self):
        self.log.flush()
        with open(self.log_path) as file:
            lines = file.readlines()[-40:]
        print("".join(f"    {line}" for line in lines), end="")

    def compile(self, options=(), targets=(), environment=None):
        """Configures and builds. The build counts as a test of its own."""
        name = f"{self.name}: build"
        if not os.path.exists(os.path.join(self.build, "build.ninja")):
            shutil.rmtree(os.path.join(self.build, "meson-private"), ignore_errors=True)
            if self.run(["meson", "setup", self.build, *options], environment):
                self.results.fail(name, f"meson setup failed; see {self.log_path}")
                self.tail()
                return False
        if self.run(["nice", "ninja", "-C", self.build, "-j", JOBS, *targets], environment):
            self.results.fail(name, f"does not compile; see {self.log_path}")
            self.tail()
            return False
        self.results.passed += 1
        return True

    def list_tests(self):
        """[(name, [suites], [files to be built for it])] as meson knows them."""
        def described(what):
            return json.loads(subprocess.run(["meson", "introspect", what, self.build], cwd=SOURCE, check=True,
                                             capture_output=True, text=True).stdout)
        root = os.path.realpath(self.build)
        files = {target["id"]: [os.path.relpath(os.path.realpath(file), root) for file in target["filename"]]
                 for target in described("--targets")}
        return [(test["name"], [suite.split(":")[-1] for suite in test["suite"]],
                 [file for target in test["depends"] for file in files[target]]) for test in described("--tests")]

    def test(self, names, extra=(), before=()):
        log = os.path.join(self.build, "meson-logs", "testlog.json")
        if os.path.exists(log):
            os.unlink(log)
        status = self.run([*before, "meson", "test", "-C", self.build, "--no-rebuild", "--num-processes", JOBS, *extra, *names])
        if not os.path.exists(log):
            self.results.fail(f"{self.name}: tests", f"meson test ended with {status}; see {self.log_path}")
            self.tail()
            return
        with open(log) as file:
            for line in file:
                count_program(self.results, self.name, json.loads(line))


def count_program(results, step, entry):
    """A program of cmocka or unittest counts as the tests in it, any other as one."""
    name = f"{step}: {entry['name'].split(' / ')[-1]}"
    output = (entry.get("stdout") or "") + "\n" + (entry.get("stderr") or "")
    passed = set(re.findall(r"^\[ +OK +\] (\w+)$", output, re.M))
    failed = set(re.findall(r"^\[ +(?:FAILED|ERROR) +\] (\w+)$", output, re.M)) - passed
    skipped = set(re.findall(r"^\[ +SKIPPED +\] (\w+)$", output, re.M)) - passed - failed
    for test, verdict in re.findall(r"^\w+ \(([\w.]+)\)(?:\n.*)? \.\.\. (ok|FAIL|ERROR|skipped '.*')$", output, re.M):
        {"ok": passed, "FAIL": failed, "ERROR": failed}.get(verdict, set()).add(test)
        if verdict.startswith("skipped"):
            results.skip(f"{name}.{test}", verdict[9:-1])
    results.passed += len(passed)
    for test in sorted(failed):
        results.fail(f"{name}.{test}", reason_of(output, test))
    for test in sorted(skipped):
        results.skip(f"{name}.{test}", reason_of(output, test))
    if entry["result"] == "SKIP":
        results.skip(name, last_line(output))
    elif entry["result"] not in ("OK", "EXPECTEDFAIL") and not failed:
        results.fail(name, f"{entry['result'].lower()}, exit status {entry.get('returncode')}: {last_line(output)}")
    elif not passed and not failed and not skipped:
        results.passed += 1


def reason_of(output, test):
    """What the test printed between its beginning and its verdict."""
    found = re.search(rf"^\[ RUN +\] {test}\n(.*?)^\[ +(?:SKIPPED|FAILED|ERROR|OK) +\]", output, re.M | re.S)
    lines = [line.strip() for line in found.group(1).splitlines() if line.strip()] if found else []
    if not lines:
        lines = [line.strip() for line in output.splitlines() if "error: Failure" in line or " != " in line]
    return lines[0][:300] if lines else "no reason was printed"


def last_line(output):
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def step_build(step):
    step.compile(environment={"CC": "gcc"})


def step_gcc(step):
    step.test([], ["--no-suite", "fuzz"])  # asan runs those, and sees more


def step_asan(step):
    # Of the simulator's parts one: the others run the same code on other seeds.
    def wanted(name, suites):
        return set(suites) & {"unit", "fuzz"} or name.split(" / ")[-1] == "sim-1"
    if configure_and_build_tests(step, "address,undefined", wanted):
        step.test(step.chosen, ["--timeout-multiplier", "4"])


def step_tsan(step):
    # Without address randomisation: a kernel's high entropy puts mappings where gcc's runtime cannot have them.
    if configure_and_build_tests(step, "thread", lambda name, suites: "unit" in suites and THREADED.search(name)):
        step.test(step.chosen, ["--timeout-multiplier", "8"], before=["setarch", "-R"])


def configure_and_build_tests(step, sanitizers, wanted):
    """Builds only what the tests that are wanted need; names them in step.chosen. Warnings are for the plain
    builds: under a sanitizer gcc sees less and guesses more. Optimised more, or with more than line numbers, it
    compiles twice as long, and finds nothing else. What fortified headers call instead (__recv_chk), the sanitizers
    do not know."""
    options = [f"-Db_sanitize={sanitizers}", "-Db_lundef=false", "-Dwerror=false", "-Doptimization=1", "-Ddebug=false",
               "-Dc_args=-g1 -U_FORTIFY_SOURCE"]
    if not os.path.exists(os.path.join(step.build, "build.ninja")):
        if step.run(["meson", "setup", step.build, *options], {"CC": "gcc"}):
            step.results.fail(f"{step.name}: build", f"meson setup failed; see {step.log_path}")
            step.tail()
            return False
    elif step.run(["ninja", "-C", step.build, "build.ninja"]):  # tests that were added since
        step.results.fail(f"{step.name}: build", f"meson failed; see {step.log_path}")
        step.tail()
        return False
    tests = [(name, files) for name, suites, files in step.list_tests() if wanted(name, suites)]
    step.chosen = [name for name, _ in tests]
    return step.compile(options, sorted({file for _, files in tests for file in files}))


def step_clang(step):
    if not shutil.which("clang"):
        step.results.skip("clang: build", "clang is not installed")
        return
    # Its warnings do not depend on optimisation, and nothing of it is run. Fortified headers want to be optimised.
    step.compile(["-Dfuzzers=true", "-Doptimization=0", "-Ddebug=false", "-Dc_args=-U_FORTIFY_SOURCE"],
                 environment={"CC": "clang"})


def step_integration(step):
    runner = os.path.join(SOURCE, "tests", "integration", "run.py")
    summary = os.path.join(step.build, "check", "integration.json")
    if os.geteuid() != 0:
        step.results.skip("integration: all tests", "they need root (network namespaces, ptrace)")
        return
    if os.path.exists(summary):
        os.unlink(summary)
    status = step.run([sys.executable, runner, "--build", step.build, "--json", summary, "--jobs",
                       INTEGRATION_JOBS], show=True)
    if not os.path.exists(summary):
        step.results.fail("integration: run.py", f"ended with {status} and no summary; see {step.log_path}")
        step.tail()
        return
    with open(summary) as file:
        found = json.load(file)
    step.results.passed += found["passed"]
    for entry in found["failures"]:
        step.results.fail(f"integration: {entry['name']}", entry["reason"])
    for entry in found["skipped"]:
        step.results.skip(f"integration: {entry['name']}", entry["reason"])


STEPS = {"build": step_build, "gcc": step_gcc, "asan": step_asan, "tsan": step_tsan, "clang": step_clang,
         "integration": step_integration}


def run_step(name, build, total):
    print(f"== {name}", flush=True)
    began, step = time.monotonic(), Step(name, build)
    STEPS[name](step)
    total.add(step.results)
    print(f"   {name}: {step.results.counts()} in {time.monotonic() - began:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Build and test everything.")
    parser.add_argument("--build", default="build", help="meson build directory (default: build)")
    parser.add_argument("--only", help=f"steps, with commas: {', '.join(STEPS)}")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(STEPS)
    unknown = [name for name in chosen if name not in STEPS]
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}")
    build, total, others = os.path.abspath(options.build), Results(), Results()
    if {"build", "gcc", "integration"} & set(chosen):
        run_step("build", build, total)
        if total.failed:
            chosen = [name for name in chosen if name not in ("gcc", "integration")]
    beside = "integration" in chosen

    def run_others():
        for name in STEPS:
            if name in chosen and name not in ("build", "integration"):
                run_step(name, build, others)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(run_others)
        if beside:
            run_step("integration", build, total)
        done.result()
    total.add(others)
    total.report()
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
