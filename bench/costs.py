# SPDX-License-Identifier: Apache-2.0
"""What processes cost, from /proc: processor time and memory."""
import os
import time

TICK = os.sysconf("SC_CLK_TCK")


def times(path):
    """Seconds in user and system mode, and those of children that were waited for, of a process or thread."""
    with open(path) as file:
        fields = file.read().rpartition(")")[2].split()
    return [int(field) / TICK for field in fields[11:15]]


def cpu_s(pid, without=()):
    """Processor seconds of a process, its ended threads and children included; `without` threads, by their id."""
    return sum(times(f"/proc/{pid}/stat")) - sum(sum(times(f"/proc/{pid}/task/{thread}/stat")[:2]) for thread in without)


def threads(pid, pattern):
    """Those whose name begins as a compiled pattern says."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/comm") as file:
            if pattern.match(file.read()):
                found.append(int(thread))
    return found


def memory(pid, key):
    """Bytes: VmRSS what is resident now, VmHWM the most that was since the beginning, or since reset_peak()."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0  # it has ended, and nobody has waited for it yet


def reset_peak(pid):
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def wait(process, seconds):
    """Until a processes.Process ends: (exit code, processor seconds, most bytes that were resident)."""
    deadline, peak = time.monotonic() + seconds, 0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        peak = max(peak, memory(process.pid, "VmHWM"))
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    cpu = cpu_s(process.pid)  # a process that ended keeps its times until it is waited for
    return process.wait(0.1), cpu, peak
