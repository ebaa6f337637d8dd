# SPDX-License-Identifier: Apache-2.0
"""The world around a guest with servers: its disks, its network, somebody outside, a shell inside.

    alpha                          outside                        beta
    ┌──────────────────────┐      ┌─────────────────────┐      ┌──────────────────────┐
    │ guest ─ tap0 ─ br0 ─ up0 ───── alpha ─ br0 ─ beta ─────── up0 ─ br0 ─ tap0 ─ guest │
    │                      │      │       10.78.0.1     │      │                      │
    │ eth0 ────────────────────────── the hosts' wire ────────────────────────── eth0  │
    └──────────────────────┘      └─────────────────────┘      └──────────────────────┘

The guest has one MAC and one address on either host; br0 outside is the switch that learns behind which port.
The hosts' own wire (understudy_test.Run.network) is another.
"""
import os
import re
import socket
import subprocess
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CLIENT, GUEST, MAC = "10.78.0.1", "10.78.0.2", "52:54:00:78:00:02"
CLIENT_MAC = "52:54:00:78:00:01"  # the same in each test: a guest that booted in another one knows it from there
TAP, BRIDGE, UPLINK = "tap0", "br0", "up0"
REDIS_PORT, POSTGRES_PORT, COUNTER_PORT, COUNTER_PEER_PORT = 6379, 5432, 7001, 7000


def image(build):
    """Directory of the guest with servers, made once for each build directory."""
    directory = os.path.join(build, "services")
    done = subprocess.run([os.path.join(SOURCE, "tests/guest/services/build.sh"), directory], timeout=600,
                          capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the guest with servers could not be built: {done.stdout}{done.stderr}")
    return directory


class Outside:
    """The third network namespace, and a bridge on each host. `hosts` is {name: namespace}."""

    def __init__(self, run, name, hosts):
        self.run, self.name = run, name
        run.command("ip", "netns", "add", name)
        run.command("ip", "-n", name, "link", "set", "lo", "up")
        self.bridge(name)
        self.ip(name, "link", "set", BRIDGE, "address", CLIENT_MAC)
        self.ip(name, "address", "add", f"{CLIENT}/24", "dev", BRIDGE)
        for host, namespace in hosts.items():
            self.bridge(namespace)
            self.ip(namespace, "tuntap", "add", TAP, "mode", "tap")
            run.command("ip", "link", "add", UPLINK, "netns", namespace, "type", "veth", "peer", "name", host,
                        "netns", name)
            for where, port in (namespace, TAP), (namespace, UPLINK), (name, host):
                self.ip(where, "link", "set", port, "master", BRIDGE)
                self.ip(where, "link", "set", port, "up")

    def ip(self, namespace, *words):
        self.run.command("ip", "-n", namespace, *words)

    def bridge(self, namespace):
        """One that forwards from its first moment, without asking other bridges."""
        self.ip(namespace, "link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0",
                "mcast_snooping", "0")
        self.ip(namespace, "link", "set", BRIDGE, "up")

    def unplug(self, host, up=False):
        """The host's cable to the switch."""
        self.ip(self.name, "link", "set", host, "up" if up else "down")

    def command(self, *argv, **options):
        """Runs a program outside, as a client of the guest."""
        return self.run.command(*argv, network=self.name, **options)

    def port_of_guest(self):
        """The host behind which the switch has last seen the guest, or None."""
        out = self.run.command("bridge", "-n", self.name, "fdb", "show", "br", BRIDGE, "dynamic")[0]
        found = re.search(rf"^{MAC} dev (\S+)", out, re.M)
        return found and found.group(1)


class Disk:
    """A writable disk of the guest: an image of its own on each host, of one size.

    `content` is a file that alpha's image starts with (beta's is empty); None for an empty one of `mib`.
    One that is `read_only` has its content on both hosts."""

    def __init__(self, content=None, mib=64, format="raw", bus="virtio-blk", direct=True, read_only=False,
                 share_rw=False):
        self.content, self.format, self.bus, self.direct = content, format, bus, direct
        self.read_only, self.share_rw = read_only, share_rw
        self.bytes = os.path.getsize(content) if content else mib << 20

    def create(self, run, path, filled):
        if self.format == "qcow2":
            run.command("qemu-img", "create", "-q", "-f", "qcow2", path, str(self.bytes))
            if filled and self.content:
                run.command("qemu-img", "convert", "-n", "-O", "qcow2", self.content, path)
        elif filled and self.content:
            run.command("cp", "--sparse=always", self.content, path)
        else:
            with open(path, "wb") as file:
                file.truncate(self.bytes)


class Devices:
    """QEMU's disks and network of a guest, the same on both hosts but for the paths."""

    def __init__(self, pair, disks=(), services=None, network=None, mac=MAC):
        self.pair, self.disks, self.network, self.mac = pair, list(disks), network, mac
        self.services = image(pair.run.build) if services is not None else None
        self.roles = services
        self.boot = tuple(os.path.join(self.services, name) for name in ("vmlinuz", "initrd")) if self.services else None

    def disk_path(self, host, index):
        return self.pair.path(f"{host}-disk{index}.img")

    def socket_path(self, host, end):
        """-netdev dgram: QEMU is at the end "guest", whoever carries its frames at "own"."""
        return self.pair.path(f"{host}-net.{end}")

    def shell_path(self, host):
        return self.pair.path(f"{host}.shell")

    def create(self):
        """Images, once."""
        for index, disk in enumerate(self.disks):
            for host in "alpha", "beta":
                if not os.path.exists(self.disk_path(host, index)):
                    disk.create(self.pair.run, self.disk_path(host, index), host == "alpha" or disk.read_only)

    def written(self):
        """Indices of the disks that the guest may write to."""
        return [index for index, disk in enumerate(self.disks) if not disk.read_only]

    def names(self):
        """The guest's names of the disks, then of the root: the order of the command line, by bus."""
        letters = {"virtio-blk": iter("abcdefgh"), "virtio-scsi": iter("abcdefgh")}
        prefix = {"virtio-blk": "/dev/vd", "virtio-scsi": "/dev/sd"}
        buses = [disk.bus for disk in self.disks] + (["virtio-blk"] if self.services else [])
        return [prefix[bus] + next(letters[bus]) for bus in buses]

    def append(self):
        """Kernel parameters of the guest with servers."""
        if not self.services:
            return []
        names = self.names()
        found = [f"us.role={self.roles}", f"us.root={names[-1]}"]
        if self.disks and self.disks[0].content:
            found.append(f"us.data={names[0]}")
        if self.network:
            found += [f"us.ip={GUEST}/24", f"us.peer={CLIENT}:{COUNTER_PEER_PORT}", f"us.port={COUNTER_PORT}"]
        return found

    def drive(self, name, path, format, bus, direct=True, read_only=False, share_rw=False):
        options = f"cache.direct={'on' if direct else 'off'},read-only={'on' if read_only else 'off'}"
        device = "scsi-hd,bus=scsi.0" if bus == "virtio-scsi" else "virtio-blk-pci"
        return ["-blockdev", f"driver={format},node-name={name}-node,{options},file.driver=file,"
                f"file.filename={path},file.{options.replace(',', ',file.')}",
                "-device", f"{device},drive={name}-node,id={name}{',share-rw=on' if share_rw else ''}"]

    def qemu(self, host):
        argv = []
        if any(disk.bus == "virtio-scsi" for disk in self.disks):
            argv += ["-device", "virtio-scsi-pci,id=scsi"]
        for index, disk in enumerate(self.disks):
            argv += self.drive(f"disk{index}", self.disk_path(host, index), disk.format, disk.bus, disk.direct,
                               disk.read_only, disk.share_rw)
        if self.services:
            argv += self.drive("root", os.path.join(self.services, "root.img"), "raw", "virtio-blk",
                               direct=False, read_only=True)
            argv += ["-chardev", f"socket,id=shell,path={self.shell_path(host)},server=on,wait=off",
                     "-serial", "chardev:shell"]
        if self.network == "tap":
            argv += ["-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no"]
        elif self.network == "dgram":
            argv += ["-netdev", "dgram,id=net0,local.type=unix,"
                     f"local.path={self.socket_path(host, 'guest')},remote.type=unix,"
                     f"remote.path={self.socket_path(host, 'own')}"]
        if self.network:
            argv += ["-device", f"virtio-net-pci,netdev=net0,id=nic0,mac={self.mac},romfile="]
        return argv


class Shell:
    """Commands inside the guest, over its second serial port. One request at a time."""

    count = 0

    def __init__(self, path, seconds=10):
        self.path, self.rest = path, b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.socket.sendall(b"\n")  # ends what somebody else may have left unfinished

    def __call__(self, command, expect=0, seconds=30):
        """The output; fails when the exit code is not the expected one (None: any, and (output, code))."""
        Shell.count += 1
        tag = f"q{os.getpid()}.{Shell.count}"
        deadline = time.monotonic() + seconds
        self.socket.sendall(f"{tag} {command}\n".encode())
        lines = []
        while True:
            line = self.line(deadline, command)
            if line.startswith(f"{tag} | "):
                lines.append(line[len(tag) + 3:])
            elif line.startswith(f"{tag} = "):
                code, output = int(line.split()[-1]), "\n".join(lines)
                break
        if expect is None:
            return output, code
        if code != expect:
            raise AssertionError(f"in the guest, {command!r} ended with {code}, not {expect}:\n{output}")
        return output

    def line(self, deadline, command):
        while b"\n" not in self.rest:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                got = self.socket.recv(65536)
            except TimeoutError:
                raise AssertionError(f"in the guest, {command!r} did not end in time")
            if not got:
                raise AssertionError(f"QEMU ended during {command!r}")
            self.rest += got
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
