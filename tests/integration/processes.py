# SPDX-License-Identifier: Apache-2.0
"""Processes of one test: all are found again and ended, even those that changed their parent.

The test's process is a child subreaper: whatever it started, and whatever those started and then left behind
(a QEMU whose engine was killed), becomes its child. So "everything that this test started" is exactly "every
descendant of this process", and no name has to be guessed at the end.
"""
import ctypes
import os
import signal
import subprocess
import time

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNET = 0x40000000


def become_subreaper():
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def enter_network(name):
    """Moves the calling thread, and only that, into a named network namespace."""
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns({name})")


def stat(pid):
    """(state letter, parent) of a process, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except (OSError, IndexError):
        return None


def alive(pid):
    found = stat(pid)
    return found is not None and found[0] != "Z"


def children():
    """Map of parent to children, over all processes."""
    of = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = stat(int(entry))
            if found:
                of.setdefault(found[1], []).append(int(entry))
    return of


def descendants(root):
    of, found, left = children(), [], [root]
    while left:
        for pid in of.get(left.pop(), ()):
            found.append(pid)
            left.append(pid)
    return found


def end_descendants(root, keep=()):
    """SIGKILL to every descendant, again until none is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [pid for pid in descendants(root) if pid not in keep and alive(pid)]
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    reap(keep)


def reap(keep=()):
    """Collect dead children that subprocess does not know."""
    for pid in children().get(os.getpid(), ()):
        if pid not in keep:
            try:
                os.waitpid(pid, os.WNOHANG)
            except (ChildProcessError, OSError):
                pass


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def rss(pid):
    """Resident bytes of a process, without the guest memory that it only maps (RssFile, RssShmem)."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"no RssAnon for process {pid}")


def tail(path, lines=25):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError as error:
        return f"({error})\n"


class Process:
    """One program, perhaps inside a network namespace, its output in a file."""

    def __init__(self, name, argv, log, network=None, environment=None, before=None,
                 input=subprocess.DEVNULL):
        self.name, self.log, self.argv = name, log, argv
        if network:
            argv = ["nsenter", f"--net=/run/netns/{network}", "--"] + argv
        with open(log, "ab") as output:
            output.write(f"# {' '.join(argv)}\n".encode())
            output.flush()
            self.popen = subprocess.Popen(argv, stdin=input, stdout=output, stderr=output,
                                          env={**os.environ, **(environment or {})}, start_new_session=True,
                                          preexec_fn=before)
        self.pid = self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def stopped(self):
        found = stat(self.pid)
        return found is not None and found[0] == "T"

    def signal(self, number):
        if self.running():
            os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.popen.wait(10)

    def wait(self, seconds):
        """Exit code (negative: signal), or an error that shows the log's end."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds} s; its log ends:\n{tail(self.log)}")
