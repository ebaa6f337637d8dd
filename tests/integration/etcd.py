# SPDX-License-Identifier: Apache-2.0
"""An etcd cluster on a third host, with TLS, client certificates and users, on wires that can be cut.

    alpha 10.78.1.1 ---- 10.78.1.2 \\
                                    third host, members at 10.78.0.11, .12, .13
    beta  10.78.2.1 ---- 10.78.2.2 /
"""
import base64
import http.client
import json
import os
import shutil
import ssl
import threading

import processes
from processes import Process
from understudy_test import UUID, Skip, wait_for

PORT, PEER_PORT = 2379, 2380
WIRES = {"alpha": ("10.78.1.1", "10.78.1.2"), "beta": ("10.78.2.1", "10.78.2.2")}
USER, PASSWORD, ROOT_PASSWORD = "us", "a secret", "root's secret"
PREFIX = "/understudy-test"


def encode(text):
    return base64.b64encode(text.encode()).decode()


class Etcd:
    def __init__(self, run, members=1):
        if not shutil.which("etcd"):
            raise Skip("no etcd here (Debian: etcd-server)")
        self.run = run
        self.directory = os.path.join(run.directory, "etcd")
        os.makedirs(self.directory)
        self.addresses = [f"10.78.0.{11 + index}" for index in range(members)]
        self.members, self.token = {}, None
        self.make_network()
        self.make_certificates()
        for address in self.addresses:
            self.start(address)
        wait_for("etcd has a leader", 30, self.leader, lambda: run.log_file.name, every=0.1)
        self.make_users()

    def path(self, name):
        return os.path.join(self.directory, name)

    # -- the third host -----------------------------------------------------------------------------------
    def make_network(self):
        run, name = self.run, f"us{os.getpid()}e"
        hosts = {host: run.network(host) for host in WIRES}
        self.network = run.networks["etcd"] = name
        run.command("ip", "netns", "add", name)
        run.command("ip", "-n", name, "link", "set", "lo", "up")
        for address in self.addresses:
            run.command("ip", "-n", name, "address", "add", f"{address}/32", "dev", "lo")
        run.command("sysctl", "-qw", "net.ipv4.ip_forward=0", network=name)
        for host, (near, far) in WIRES.items():
            run.command("ip", "link", "add", "etcd0", "netns", hosts[host], "type", "veth", "peer", "name", host,
                        "netns", name)
            for network, device, address in (hosts[host], "etcd0", near), (name, host, far):
                run.command("ip", "-n", network, "address", "add", f"{address}/24", "dev", device)
                run.command("ip", "-n", network, "link", "set", device, "up")
            run.command("ip", "-n", hosts[host], "route", "add", "10.78.0.0/24", "via", far)

    def cut(self, host, way="both"):
        """Between a host and etcd. "in": what the host says does not arrive; "out": the answers do not."""
        if way == "both":
            self.run.command("ip", "-n", self.network, "link", "set", host, "down")
        else:
            drop(self.run, self.network, host, {"in": "input", "out": "output"}[way])

    def mend(self, host):
        undrop(self.run, self.network)
        self.run.command("ip", "-n", self.network, "link", "set", host, "up")

    # -- certificates -------------------------------------------------------------------------------------
    def make_certificates(self):
        openssl = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                   "-days", "2")
        self.run.command(*openssl, "-keyout", self.path("ca.key"), "-out", self.path("ca.pem"), "-subj",
                         "/CN=etcd test CA")
        names = ",".join(f"IP:{address}" for address in self.addresses)
        for name, extension in ("member", f"subjectAltName={names}"), ("client", "subjectAltName=DNS:client"):
            self.run.command(*openssl, "-CA", self.path("ca.pem"), "-CAkey", self.path("ca.key"), "-keyout",
                             self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"), "-subj", f"/O={name}",
                             "-addext", extension, "-addext", "basicConstraints=critical,CA:FALSE")

    # -- members ------------------------------------------------------------------------------------------
    def start(self, address):
        name = f"member{self.addresses.index(address)}"
        cluster = ",".join(f"member{index}=http://{each}:{PEER_PORT}" for index, each in enumerate(self.addresses))
        argv = ["etcd", "--name", name, "--data-dir", self.path(name),
                "--listen-client-urls", f"https://{address}:{PORT}",
                "--advertise-client-urls", f"https://{address}:{PORT}",
                "--listen-peer-urls", f"http://{address}:{PEER_PORT}",
                "--initial-advertise-peer-urls", f"http://{address}:{PEER_PORT}",
                "--initial-cluster", cluster, "--initial-cluster-token", self.run.name,
                "--cert-file", self.path("member.pem"), "--key-file", self.path("member.key"),
                "--trusted-ca-file", self.path("ca.pem"), "--client-cert-auth",
                "--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap", "--log-level", "warn"]
        self.members[address] = Process(f"etcd {name}", argv, os.path.join(self.run.logs, f"etcd-{name}.log"),
                                        self.network)

    def ask(self, path, body, address=None, seconds=5):
        """The JSON answer of a member, asked from the third host; None when there is none."""
        answers = []

        def work():
            processes.enter_network(self.network)
            context = ssl.create_default_context(cafile=self.path("ca.pem"))
            context.load_cert_chain(self.path("client.pem"), self.path("client.key"))
            for each in [address] if address else self.addresses:
                try:
                    connection = http.client.HTTPSConnection(each, PORT, timeout=seconds, context=context)
                    connection.request("POST", path, json.dumps(body),
                                       {"Authorization": self.token} if self.token else {})
                    reply = connection.getresponse()
                    answers.append((reply.status, json.loads(reply.read())))
                    return
                except (OSError, ValueError, http.client.HTTPException):
                    continue
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if answers:
            self.run.log(f"etcd {path} -> {answers[0]}")
        return answers[0][1] if answers and answers[0][0] == 200 else None

    def leader(self):
        """The address of the member that leads, if a living one knows it."""
        for address in self.addresses:
            status = self.ask("/v3/maintenance/status", {}, address)
            if status and status.get("leader") == status["header"]["member_id"]:
                return address
        return None

    def make_users(self):
        """A user who may write nothing but the registers."""
        everything = {"permType": "READWRITE", "key": encode("\0"), "range_end": encode("\0")}
        ours = {"permType": "READWRITE", "key": encode(PREFIX + "/"), "range_end": encode(PREFIX + "0")}
        for user, password, permission in ("root", ROOT_PASSWORD, everything), (USER, PASSWORD, ours):
            for path, body in (("user/add", {"name": user, "password": password}), ("role/add", {"name": user}),
                               ("role/grant", {"name": user, "perm": permission}),
                               ("user/grant", {"user": user, "role": user})):
                assert self.ask(f"/v3/auth/{path}", body) is not None, path
        assert self.ask("/v3/auth/enable", {}) is not None
        self.token = self.ask("/v3/auth/authenticate", {"name": "root", "password": ROOT_PASSWORD})["token"]

    # -- for the tests ------------------------------------------------------------------------------------
    def keys(self):
        """What [vm] says."""
        with open(self.path("password"), "w") as file:
            file.write(PASSWORD + "\n")
        os.chmod(self.path("password"), 0o600)
        return {"arbiter": "etcd", "etcd-endpoints": " ".join(f"https://{each}:{PORT}" for each in self.addresses),
                "etcd-prefix": PREFIX, "etcd-ca": self.path("ca.pem"), "etcd-certificate": self.path("client.pem"),
                "etcd-key": self.path("client.key"), "etcd-user": USER,
                "etcd-password-file": self.path("password"), "etcd-timeout": "2s"}

    def register(self):
        """(generation, owner), or None."""
        found = self.ask("/v3/kv/range", {"key": encode(f"{PREFIX}/{UUID}")})
        if not found or not found.get("kvs"):
            return None
        value = json.loads(base64.b64decode(found["kvs"][0]["value"]))
        return value["generation"], value["owner"]


def drop(run, network, device, hook):
    """In this namespace nothing passes this device any more in one direction."""
    word = {"input": "iifname", "output": "oifname"}[hook]
    run.command("nft", f"add table inet cut; add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}; "
                f"add rule inet cut {hook} {word} {device} drop", network=network)


def undrop(run, network):
    run.command("nft", "delete table inet cut", network=network, expect=None)
