# SPDX-License-Identifier: Apache-2.0
"""The line of `understudy bench scale` that is of our own VMM: its pause with more vCPUs, each of which has to be stopped, saved
and let go. `understudy bench protect --guest bare` measures it, at a rate that stays the same for all together."""
import json
import os
import subprocess

import frame

RATE, SECONDS = 1000, 1
# (name, in words, unit, better): figures of protect
FIGURES = (("pause_mean", "pause, mean of a round", "ms", "lower"), ("pause_p50", "pause, p50", "ms", "lower"),
           ("pause_p99", "pause, p99", "ms", "lower"), ("checkpoints", "checkpoints a second", "1/s", "higher"))


def counts(most):
    """1, 2, 4 ... and the last."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)}) if most else []


def obstacle(options):
    """Why it cannot be measured here, or None."""
    if os.geteuid():
        return "needs root"
    import kvm
    return kvm.obstacle(frame.program(options))


def measure(options, screen):
    """(the result of protect or None, [note])"""
    if not options.vcpus:
        return None, []
    why = obstacle(options)
    if why:
        return None, [f"vCPUs left out: {why}"]
    asked = ",".join(map(str, counts(options.vcpus)))
    screen.say(f"our own VMM with {asked} vCPUs")
    argv = [frame.program(options), "bench", "protect", "--build", options.build, "--guest", "bare", "--vmm", "kvm", "--cpus",
            asked, "--rate", str(RATE), "--seconds", str(SECONDS), "--rounds", str(options.rounds), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout), []


def describe(result, found):
    """`found`: of measure()."""
    samples = {figure["name"]: figure["samples"] for figure in found["figures"]} if found else {}
    for name, row in (found["rows"] if found else {}).items():
        cpus = row["cpus"]
        for key, words, unit, better in FIGURES:
            result.figure(f"vcpus-{cpus}.{key}", f"{cpus} vCPU{'s' * (cpus > 1)}: {words}", unit, better, samples[f"{name}.{key}"],
                          f"{words}, by vCPUs of our own VMM", x=cpus, x_title="vCPUs")


def table(found):
    if not found:
        return []
    lines = ["", f"our own VMM with {RATE} page writes a second, by vCPUs",
             f"  {'':>8}{'pause50':>9}{'99 ms':>9}{'ckpt/s':>9}{'dirty':>7}"]
    return lines + [f"  {row['cpus']:>8}{row['pause_ms']['p50']:>9.2f}{row['pause_ms']['p99']:>9.2f}{row['checkpoints_per_s']:>9.1f}"
                    f"{row['dirty_pages']['p50']:>7.0f}" for row in found["rows"].values()]
