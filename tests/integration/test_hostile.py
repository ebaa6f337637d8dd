# SPDX-License-Identifier: Apache-2.0
"""What reaches the standby's port need not be a friend. Every case ends by protecting a guest as if nothing
had been."""
import os
import ssl
import struct

import peer
from understudy_test import BETA, PORT, UUID, check, wait_for

UUID_BYTES = bytes.fromhex(UUID.replace("-", ""))


def still_fit(pair):
    check(pair.engines["beta"].running(), "the standby ended", pair.story)
    check(pair.status("beta")["state"] == "waiting", f"the standby is {pair.status('beta')['state']}", pair.story)


def knock(run, certificate, key, version=None):
    """Connects and says HELLO; True when the standby let us in (it confirmed our certificate)."""
    try:
        client = peer.Client(run.network("alpha"), (BETA, PORT), certificate=certificate, key=key, version=version)
    except (OSError, ssl.SSLError) as error:
        run.log(f"knock with {certificate}: {error}")
        return False
    client.send(peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=7))
    got, closed = client.read_all(limit=1)
    run.log(f"knock with {certificate}: {len(got)} bytes, closed {closed}")
    client.close()
    return len(got) > 0


def host_certificate(run, directory, name):
    """A certificate for `name`, of the CA in `directory`."""
    run.us("pki", "host", directory, name)
    return os.path.join(directory, f"{name}.pem"), os.path.join(directory, f"{name}.key")


def expired_certificate(run, pki):
    """Signed by our CA for the right name, but valid only in the past."""
    work = os.path.join(run.directory, "expired")
    os.makedirs(work)
    files = {name: os.path.join(work, name) for name in ("key", "csr", "pem", "index", "serial", "conf")}
    open(files["index"], "w").close()
    with open(files["serial"], "w") as file:
        file.write("1000\n")
    with open(files["conf"], "w") as file:
        file.write("[ca]\ndefault_ca = own\n[own]\n"
                   f"database = {files['index']}\nserial = {files['serial']}\nnew_certs_dir = {work}\n"
                   f"certificate = {pki}/ca.pem\nprivate_key = {pki}/ca.key\ndefault_md = sha256\npolicy = any\n"
                   "[any]\ncommonName = supplied\n[v3]\nsubjectAltName = DNS:alpha\n"
                   "extendedKeyUsage = serverAuth, clientAuth\n")
    run.command("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-subj", "/CN=alpha", "-keyout", files["key"], "-out", files["csr"])
    run.command("openssl", "ca", "-batch", "-config", files["conf"], "-extensions", "v3", "-startdate",
                "20200101000000Z", "-enddate", "20210101000000Z", "-in", files["csr"], "-out", files["pem"],
                "-notext")
    return files["pem"], files["key"]


def test_identity(run):
    """Another CA, another name, an expired certificate, none at all, TLS 1.2: all stay outside."""
    pair = run.pair()
    pki = run.pki()
    pair.standby()
    other = os.path.join(run.directory, "other-pki")
    run.us("pki", "init", other)
    cases = {"right": (f"{pki}/alpha.pem", f"{pki}/alpha.key"),
             "another CA": host_certificate(run, other, "alpha"),
             "another name": host_certificate(run, pki, "gamma"),
             "own name": (f"{pki}/beta.pem", f"{pki}/beta.key"),
             "expired": expired_certificate(run, pki),
             "none": (None, None)}
    for case, (certificate, key) in cases.items():
        let_in = knock(run, certificate, key)
        check(let_in == (case == "right"), f"case '{case}': let in is {let_in}", pair.story)
        wait_for("the standby waits again", 10, lambda: pair.status("beta")["state"] == "waiting", pair.story)
    check(not knock(run, *cases["right"], version=ssl.TLSVersion.TLSv1_2), "TLS 1.2 was let in", pair.story)
    out, err, _ = run.command("openssl", "s_client", "-connect", f"{BETA}:{PORT}", "-tls1_2", "-cert",
                              f"{pki}/alpha.pem", "-key", f"{pki}/alpha.key", "-CAfile", f"{pki}/ca.pem",
                              network=run.network("alpha"), expect=None)
    check("Cipher is (NONE)" in out + err, f"openssl speaks TLS 1.2 with the standby:\n{out}{err}")
    still_fit(pair)


def test_wrong_files(run):
    """The same faults in our own files are found at start, and the file is named."""
    pair = run.pair()
    pki = run.pki()
    other = os.path.join(run.directory, "other-pki")
    run.us("pki", "init", other)
    certificate, key = expired_certificate(run, pki)
    loose = os.path.join(run.directory, "loose.key")
    with open(f"{pki}/beta.key") as good, open(loose, "w") as bad:
        bad.write(good.read())
    os.chmod(loose, 0o644)
    cases = [({"ca": f"{other}/ca.pem"}, ""), ({"certificate": certificate, "key": key}, certificate),
             ({"key": f"{pki}/alpha.key"}, ""), ({"ca": "/nonexistent.pem"}, "/nonexistent.pem"),
             ({"key": loose}, loose)]
    for keys, named in cases:
        pair.write_config(host_keys={"beta": keys})
        _, err, code = run.us("standby", pair.config("beta"), "--host", "beta", expect=(1, 2, 4))
        check(err.strip() and named in err, f"{keys}: the message does not name it: {err}")


def test_wrong_peer_certificate_at_the_primary(run):
    """The primary, too, checks whom it talks to: a standby of another name gets no byte of the guest."""
    pair = run.pair()
    pki = run.pki()
    certificate, key = host_certificate(run, pki, "gamma")
    pair.start_guest()
    pair.write_config(host_keys={"beta": {"certificate": certificate, "key": key, "tls-name": "gamma"}})
    pair.standby()
    pair.write_config()
    pair.protect(protected=False)
    status = wait_for("a reason that names the standby's certificate", 20, lambda: (
        lambda s: s and ("certificate" in s["reason"] or "name" in s["reason"]) and s)(pair.status("alpha")), pair.story)
    check(not status["protected"], "protected by a stranger", pair.story)
    pair.wait_ticks("alpha", 2)
    return status["reason"]


def test_garbage(run):
    """Noise below TLS, and above it frames that are cut short, flipped, oversized, out of order or absurd."""
    pair = run.pair()
    pki = run.pki()
    pair.standby()

    def connect():
        return peer.Client(run.network("alpha"), (BETA, PORT), certificate=f"{pki}/alpha.pem",
                           key=f"{pki}/alpha.key")

    good = peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=7)
    client = connect()
    client.send(good)
    answer = client.read_frame()
    check(answer and answer[0] == peer.WELCOME, f"a good HELLO was answered with {answer}", pair.story)
    client.close()

    def rejected(what, data, end=False):
        wait_for("the standby waits again", 10, lambda: pair.status("beta")["state"] == "waiting", pair.story)
        client = connect()
        client.send(data)
        if end:
            client.close()
            return
        while True:
            answer = client.read_frame()
            if answer is None:
                break
            check(answer[0] == peer.REFUSE, f"{what}: answered with frame type {answer[0]}", pair.story)
        client.close()

    for bit in run.random.sample(range(len(good) * 8), 60):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        rejected(f"bit {bit} flipped", bytes(flipped))
    for length in run.random.sample(range(1, len(good)), 10):
        rejected(f"cut to {length} bytes", good[:length], end=True)
    for what, data in {
            "huge length": peer.frame(peer.HELLO, length=0xffffffff, session=7),
            "zero length": peer.frame(peer.HELLO, session=7),
            "unknown type": peer.frame(99, b"x" * 136, session=7),
            "commit first": peer.frame(peer.COMMIT, b"\0" * 56, session=7, epoch=1),
            "pages on control": peer.frame(peer.PAGES, b"\0" * 64, session=7, epoch=1),
            "sequence 1": peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=7, sequence=1),
            "version 9": peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=7, version=9),
            "flags": peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=7, flags=1),
            "page size": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, page_bytes=65536), session=7),
            "no lanes": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, lanes=0), session=7),
            "65535 lanes": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, lanes=65535), session=7),
            "other machine": peer.frame(peer.HELLO, peer.hello(os.urandom(16)), session=7),
            "versions 2 to 3": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, version_min=2, version_max=3), session=7),
            "unknown feature": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, required=1 << 40), session=7),
            "unending name": peer.frame(peer.HELLO, peer.hello(UUID_BYTES, host=b"m" * 64), session=7),
            "noise": run.random.randbytes(4096)}.items():
        rejected(what, data)

    # A replayed frame: the second HELLO of a connection.
    client = connect()
    client.send(good + good)
    while (answer := client.read_frame()) is not None:
        check(answer[0] in (peer.WELCOME, peer.REFUSE, peer.HEARTBEAT), f"replay answered with {answer[0]}")
    client.close()

    # A primary that greets, then describes nonsense.
    for blocks, text in (0, 0), (65, 0), (0xffffffff, 0xffffffff), (1, 1 << 20):
        client = connect()
        client.send(good)
        client.read_frame()
        client.send(peer.frame(peer.DESCRIBE, struct.pack("<II", blocks, text), session=7, sequence=1))
        while (answer := client.read_frame()) is not None:
            check(answer[0] in (peer.REFUSE, peer.HEARTBEAT), f"nonsense answered with {answer[0]}", pair.story)
        client.close()

    # Noise without TLS.
    for data in b"GET / HTTP/1.0\r\n\r\n", run.random.randbytes(3000), b"\x16\x03\x01\xff\xff" + b"\0" * 600:
        run.command("/usr/bin/python3", "-c",
                    "import socket,sys\ns=socket.create_connection(('%s',%d),5);s.sendall(bytes.fromhex(sys.argv[1]))"
                    "\ntry:\n s.settimeout(10)\n s.recv(4096)\nexcept OSError: pass" % (BETA, PORT), data.hex(),
                    network=run.network("alpha"))
    wait_for("the standby waits again", 10, lambda: pair.status("beta")["state"] == "waiting", pair.story)
    still_fit(pair)
    pair.start_guest()
    pair.protect()
    pair.wait_epochs(5)


def test_corrupted_wire(run):
    """Bits flip on the wire under a running session: TLS sees it, the last commit stays, protection returns."""
    pair = run.pair(proxy=True).up()
    for _ in range(3):
        pair.wait_epochs(5)
        sessions = pair.status("alpha")["sessions"]
        pair.proxy.corrupt_after = run.random.randrange(1, 40000)
        wait_for("a new session", 30, lambda: (lambda s: s and s["sessions"] > sessions and s["protected"])(
            pair.status("alpha")), pair.story)
    pair.wait_ticks("alpha", 2)
    check(not pair.verify()["differing"], "memory differs", pair.story)


def test_frames_out_of_turn(run):
    """A primary with a right certificate that greets and then sends what does not belong there: the standby ends the
    session, and lives."""
    pair = run.pair()
    standby = pair.standby()
    pki = run.pki()
    verify = struct.pack("<IIQ", 0, 1, 0) + bytes(8)
    commit = struct.pack("<II", 0, 0) + struct.pack("<QQQQ", 1, 1, 100, 1) + struct.pack("<QQ", 10, 1)
    describe = struct.pack("<II", 1, 7) + struct.pack("<Q", 4096) + b"pc.ram".ljust(256, b"\0") + b"driver\n"
    turns = {
        "fingerprints before a checkpoint": [(peer.VERIFY, verify, 5)],
        "many fingerprints": [(peer.VERIFY, verify, 5)] * 400,
        "digests before a guest": [(peer.PAGE_SUMS_WANTED, struct.pack("<IIQ", 0, 512, 0), 0)] * 40,
        "commit before ACCEPT": [(peer.COMMIT, commit, 5)],
        "two descriptions": [(peer.DESCRIBE, describe, 0), (peer.DESCRIBE, describe, 0)],
    }
    for number, (what, frames) in enumerate(turns.items()):
        client = peer.Client(run.network("alpha"), (BETA, PORT), certificate=f"{pki}/alpha.pem", key=f"{pki}/alpha.key")
        session = 100 + number
        client.send(peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=session))
        answer = client.read_frame()
        check(answer and answer[0] == peer.WELCOME, f"HELLO was answered with {answer}", pair.story)
        for sequence, (kind, payload, epoch) in enumerate(frames):
            client.send(peer.frame(kind, payload, session=session, sequence=sequence + 1, epoch=epoch))
        client.read_all()
        client.close()
        check(standby.running(), f"{what}: the standby ended", pair.story)
        wait_for(f"after {what} the standby waits again", 20,
                 lambda: (pair.status("beta") or {}).get("state") == "waiting", pair.story)


def test_stranger_during_a_session(run):
    """A second session, though its certificate is right, must not disturb the first."""
    pair = run.pair().up()
    pki = run.pki()
    pair.wait_epochs(5)
    sessions = pair.status("alpha")["sessions"]
    client = peer.Client(run.network("alpha"), (BETA, PORT), certificate=f"{pki}/alpha.pem", key=f"{pki}/alpha.key")
    client.send(peer.frame(peer.HELLO, peer.hello(UUID_BYTES), session=9))
    answer = client.read_frame()
    check(answer is None or answer[0] == peer.REFUSE, f"a second session was answered with {answer}", pair.story)
    client.close()
    pair.wait_epochs(5)
    check(pair.status("alpha")["sessions"] == sessions, "the session was disturbed", pair.story)
