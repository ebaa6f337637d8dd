# SPDX-License-Identifier: Apache-2.0
"""A tiny QMP client, for the tests' own look at a QEMU that no engine is attached to."""
import json
import socket
import time


class Qmp:
    def __init__(self, path, seconds=10):
        deadline = time.monotonic() + seconds
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(seconds)
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise AssertionError(f"no QMP at {path} within {seconds} s: {error}")
                time.sleep(0.02)
        self.lines = self.socket.makefile("r")
        if "QMP" not in json.loads(self.lines.readline() or "{}"):
            raise AssertionError(f"{path} does not greet as QMP does")
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        return self.answer(command)

    def answer(self, command):
        while True:
            line = self.lines.readline()
            if not line:
                raise AssertionError(f"QEMU ended instead of answering {command}")
            reply = json.loads(line)
            if "error" in reply:
                raise AssertionError(f"QMP {command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]

    def give(self, name, descriptor):
        """Hands an open file over, for a later "fd:NAME"."""
        message = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        socket.send_fds(self.socket, [message], [descriptor])
        return self.answer("getfd")

    def hmp(self, line):
        return self("human-monitor-command", command_line=line)

    def close(self):
        self.lines.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
