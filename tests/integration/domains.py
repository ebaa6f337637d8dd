# SPDX-License-Identifier: Apache-2.0
"""Two hosts with a libvirtd each, and a machine that is a domain on both.

A host is a mount namespace in which libvirt's directories are its own. Everything runs as libvirt has it by
default: the domains' QEMUs unprivileged, in the sandbox, with a /dev of their own.
"""
import os
import re
import shutil
import threading
import time

import services
from processes import Process, alive
from understudy_test import NO_TIMER_CHECK, Pair, STEP, Skip, UUID, check, wait_for

PLACES = {"run": "/run/libvirt", "lib": "/var/lib/libvirt", "etc": "/etc/libvirt", "log": "/var/log/libvirt"}
CACHE = "/var/cache/libvirt"
NAMESPACE = "urn:understudy:domain:1"


class Host:
    """One libvirtd."""

    def __init__(self, run, name):
        if not shutil.which("libvirtd") or not shutil.which("virsh"):
            raise Skip("libvirtd and virsh are not installed")
        self.run, self.name = run, name
        self.directory = os.path.join(run.directory, f"libvirt-{name}")
        self.log = os.path.join(run.logs, f"{name}-libvirtd.log")
        lines = ["set -e"]
        for place, path in PLACES.items():
            own = os.path.join(self.directory, place)
            os.makedirs(own)
            lines.append(f"mkdir -p {path}; mount --bind {own} {path}")
        if os.path.exists("/dev/kvm"):
            lines += self.dev_without_kvm()
        # What libvirt finds out about QEMU takes it long; it is the same for all tests.
        cache = os.path.join(run.build, "libvirt-cache")
        os.makedirs(cache, exist_ok=True)
        lines += [f"mkdir -p {CACHE}; mount --bind {cache} {CACHE}", "echo ready", "exec sleep infinity"]
        self.write("qemu.conf", 'security_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = []\n')
        self.write("libvirtd.conf", f'auth_unix_rw = "none"\nlog_outputs = "3:file:{self.log}"\n'
                   f'host_uuid = "77d0c0ff-ee00-4000-8000-0000000000{"0a" if name == "alpha" else "0b"}"\n')
        place = os.path.join(run.logs, f"{name}-place.log")
        self.place = Process(f"{name}'s directories", ["unshare", "--mount", "sh", "-c", "\n".join(lines)], place,
                             run.network(name))
        wait_for(f"{name}'s directories", 10, lambda: "\nready" in open(place).read())
        self.daemon = None
        self.start()

    def dev_without_kvm(self):
        """A /dev/kvm that root may open and QEMU's user may not makes libvirt distrust what it found out about QEMU,
        and find it out again at every step. The domains have no use for it."""
        own = os.path.join(self.directory, "dev")
        os.makedirs(own)
        return [f"mount -t tmpfs -o mode=755 dev {own}", f"cp -ax /dev/. {own}", f"rm {own}/kvm",
                "for each in $(sed -n 's|^[^ ]* /dev/\\([a-z]*\\) .*|\\1|p' /proc/mounts); do "
                f"mount --bind /dev/$each {own}/$each; umount -l /dev/$each; done", f"mount --move {own} /dev"]

    def write(self, name, text):
        with open(os.path.join(self.directory, "etc", name), "w") as file:
            file.write(text)

    def inside(self, argv):
        return ["nsenter", f"--mount=/proc/{self.place.pid}/ns/mnt", "--"] + argv

    def start(self):
        self.daemon = Process(f"{self.name}'s libvirtd", self.inside(["libvirtd", "--pid-file",
                                                                           os.path.join(self.directory, "pid")]),
                              os.path.join(self.run.logs, f"{self.name}-libvirtd-output.log"),
                              self.run.network(self.name))
        wait_for(f"{self.name}'s libvirtd answers", 60,
                 lambda: self.virsh("uri", expect=None)[2] == 0 or not self.daemon.running(), every=0.2)
        check(self.daemon.running(), f"{self.name}'s libvirtd ended")

    def restart(self, gap=0.0):
        """As an upgrade of its package does it."""
        self.kill()
        time.sleep(gap)
        self.start()

    def kill(self):
        self.daemon.kill()

    def virsh(self, *argv, expect=0, seconds=90):
        return self.run.command(*self.inside(["virsh", "-q", *argv]), expect=expect, seconds=seconds,
                                network=self.run.network(self.name))

    def state(self, domain):
        return self.virsh("domstate", domain)[0].strip()

    def wait_state(self, domain, state, context, seconds=10):
        """A protected domain is paused for a moment at each checkpoint, and virsh may just see that."""
        wait_for(f"{domain} {state} on {self.name}", seconds, lambda: self.state(domain) == state, context)

    def mark(self, domain):
        """(role, peer) as the domain's metadata has it, or None."""
        out, _, code = self.virsh("metadata", domain, "--uri", NAMESPACE, "--live", expect=None)
        found = re.search(r'role="(\w+)" peer="(\w+)"', out.replace("'", '"')) if code == 0 else None
        return found and found.groups()


def reap_guests(until):
    """A QEMU whose libvirtd let it go is this process's child, and libvirt waits for it to be gone."""
    while not until.wait(0.2):
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/children") as file:
                    children = file.read().split()
            except OSError:
                continue
            for pid in map(int, children):
                try:
                    with open(f"/proc/{pid}/stat") as file:
                        dead = "(qemu-system" in (text := file.read()) and text.rpartition(")")[2].split()[0] == "Z"
                    if dead:
                        os.waitpid(pid, os.WNOHANG)
                except OSError:
                    pass


class Domains(Pair):
    """A Pair whose guests are domains of libvirt's, "web" on either host."""

    def __init__(self, run, monitor=False, shared_memory=False, cpu="", devices="", standby_cpu=None,
                 standby_devices=None, fio=False, **options):
        """`monitor`: QEMU also has a QMP socket for the test, at {host}.qmp. `cpu`: XML; `devices`: more XML for
        <devices>, {directory} and {host} filled in. `fio`: the guest with servers, whose fio writes and verifies a
        disk of its own on each host."""
        self.hosts = {host: Host(run, host) for host in ("alpha", "beta")}
        self.monitor, self.shared_memory, self.by_socket = monitor, shared_memory, False
        self.cpu = {"alpha": cpu, "beta": cpu if standby_cpu is None else standby_cpu}
        self.more = {"alpha": devices, "beta": devices if standby_devices is None else standby_devices}
        self.boot = run.guest
        if fio:
            image = services.image(run.build)
            self.boot = [os.path.join(image, name) for name in ("vmlinuz", "initrd")]
            options = {"memory": 256, **options}
            options["load"] += " us.role=fio us.root=/dev/vda us.fiodev=/dev/vdb us.fiosize=2M"
            self.more = {host: more + self.fio_disks(run, image) for host, more in self.more.items()}
        super().__init__(run, **options)
        if fio:
            for host in self.hosts:
                with open(self.path(f"{host}-disk.img"), "wb") as file:
                    file.truncate(8 << 20)
        self.no_more = threading.Event()
        threading.Thread(target=reap_guests, args=(self.no_more,), daemon=True).start()
        for directory in run.directory, self.directory:
            os.chmod(directory, 0o777)
        for host, place in self.hosts.items():
            with open(self.path(f"{host}.xml"), "w") as file:
                file.write(self.xml(host))
            place.virsh("define", self.path(f"{host}.xml"))

    def fio_disks(self, run, image):
        # libvirt gives the image it boots from to QEMU's user: a copy, which others do not boot from.
        root = shutil.copy(os.path.join(image, "root.img"), run.directory)
        disk = ("<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"
                "<source file='{path}'/><target dev='{name}' bus='virtio'/>{more}</disk>")
        return (disk.format(path=root, name="vda", more="<readonly/>")
                + disk.format(path="{directory}/{host}-disk.img", name="vdb", more=""))

    def guest_keys(self, host):
        if self.by_socket and host == "alpha":
            return {"qmp": self.path(f"{host}.qmp")}
        return {"domain": self.tag}

    def inside(self, host, argv):
        return self.hosts[host].inside(argv)

    def xml(self, host):
        kernel, initramfs = [shutil.copy(path, self.path(f"{host}-{os.path.basename(path)}"))
                             for path in self.boot]
        for path in kernel, initramfs:
            os.chmod(path, 0o644)
        append = f"console=ttyS0 quiet panic=-1 {NO_TIMER_CHECK} us.block=pc.ram {STEP} {self.load}"
        backing = ("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
                   if self.shared_memory else "")
        more = self.more[host].format(directory=self.directory, host=host)
        own = ("" if not self.monitor else "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
               f"<arg value='-qmp'/><arg value='unix:{self.path(host + '.qmp')},server=on,wait=off'/></commandline>")
        return f"""<domain type='qemu'>
  <name>{self.tag}</name><uuid>{UUID}</uuid>
  <memory unit='MiB'>{self.memory}</memory><vcpu>{self.smp}</vcpu>{backing}
  <os><type arch='x86_64' machine='pc-{self.machine}-7.2'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initramfs}</initrd><cmdline>{append}</cmdline></os>
  <features><acpi/></features>{self.cpu[host]}
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <serial type='file'><source path='{self.path(host + ".serial")}'/><target port='0'/></serial>
    <controller type='usb' model='none'/><memballoon model='none'/>{more}
  </devices>{own}
</domain>
"""

    def start_guest(self, ticks=2, seconds=90):
        self.hosts["alpha"].virsh("start", self.tag)
        serial = self.serial("alpha")
        wait_for(f"guest's tick {ticks}", seconds, lambda: len(serial.ticks()) >= ticks, self.story, every=0.1)
        self.probe = serial.probe()
        check(self.probe, "the guest named no probe", self.story)
        self.write_config(probe=self.probe)
        return self

    def libvirt_pid(self, host):
        """As libvirt itself has it."""
        with open(os.path.join(self.hosts[host].directory, "run", "qemu", f"{self.tag}.pid")) as file:
            return int(file.read())

    def kill_host(self):
        """alpha dies: its QEMU, its engine and its libvirtd, at once."""
        pid = self.libvirt_pid("alpha")
        self.engines["alpha"].signal(9)
        os.kill(pid, 9)
        self.hosts["alpha"].kill()
        wait_for("alpha's QEMU is gone", 10, lambda: not alive(pid))
