# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, spoken to over a pipe (Chrome DevTools Protocol): what it logs, what it wants to fetch."""
import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time

PROGRAM = shutil.which("chromium")


class Browser:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="us-browser-")
        to_it, ours_out = os.pipe()
        ours_in, from_it = os.pipe()

        def pipes():
            """It reads commands from 3 and answers to 4; either may lie where the other has to go."""
            commands, answers = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 5) for end in (to_it, from_it))
            os.dup2(commands, 3)
            os.dup2(answers, 4)
        self.process = subprocess.Popen(
            [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
             f"--user-data-dir={self.directory}", "--no-first-run", "--disable-background-networking", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pipes, close_fds=False,
            start_new_session=True, env={**os.environ, "HOME": self.directory})
        os.close(to_it)
        os.close(from_it)
        self.output, self.input, self.rest, self.number = ours_out, ours_in, b"", 0
        os.set_blocking(self.input, False)
        self.events, self.session = [], None
        target = next(one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in "Page", "Log", "Runtime", "Network":
            self(f"{domain}.enable")

    def take(self, deadline):
        while b"\0" not in self.rest:
            if time.monotonic() > deadline:
                raise AssertionError("Chromium does not answer")
            try:
                data = os.read(self.input, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            if not data:
                raise AssertionError("Chromium ended")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def __call__(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            reply = self.take(deadline)
            if reply.get("id") == self.number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]
            self.events.append(reply)

    def open(self, path, width, dark=False):
        """Returns when it is loaded."""
        self.events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self("Page.navigate", url=f"file://{path}")
        deadline = time.monotonic() + 60
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.take(deadline))

    def value(self, expression):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def complaints(self):
        """What the console has: errors, warnings, messages."""
        return [event for event in self.events if event.get("method") in
                ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]

    def requests(self):
        return [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]

    def screenshot(self, path):
        picture = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))

    def close(self):
        self.process.kill()
        self.process.wait(20)
        os.close(self.output)
        os.close(self.input)
        shutil.rmtree(self.directory, ignore_errors=True)
