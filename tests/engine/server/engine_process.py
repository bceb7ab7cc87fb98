"""An engine as its agent starts it: a process with a notify pipe."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time

import httpx

START_TIMEOUT_S = 60
END_TIMEOUT_S = 30
LOOPBACK = "127.0.0.1"


class EngineProcess:
    """`python -m engine` with these flags, on free ports; use it as a context manager, which kills what is left."""

    def __init__(self, *flags, env=None, main=("-m", "engine")):
        notify, theirs = os.pipe()
        self._log_lines = None
        argv = [sys.executable, *main, *flags]
        environment = {**os.environ, "PDCTL_NOTIFY_FD": str(theirs), "OMP_NUM_THREADS": "1", **(env or {})}
        self._process = subprocess.Popen(
            argv, env=environment, pass_fds=[theirs], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        os.close(theirs)
        self._notify = notify
        self.events = []
        self.ports = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait(END_TIMEOUT_S)
        self._process.stderr.close()
        os.close(self._notify)

    @property
    def url(self):
        return f"http://{LOOPBACK}:{self.ports['api']}"

    @property
    def pid(self):
        return self._process.pid

    def ready(self):
        """Wait for the process's own word that it serves."""
        self.until("ready")
        return self

    def until(self, kind):
        """Read the notify pipe until that kind of event has come."""
        deadline = time.monotonic() + START_TIMEOUT_S
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._notify, selectors.EVENT_READ)
            while not any(event["event"] == kind for event in self.events):
                if not selector.select(deadline - time.monotonic()):
                    raise TimeoutError(f"no {kind} within {START_TIMEOUT_S} s: {self.events}")
                data = os.read(self._notify, 65536)
                if not data:
                    raise RuntimeError(f"the engine has ended before {kind}: {self.ended()}")
                *lines, pending = (pending + data).split(b"\n")
                self._take([json.loads(line) for line in lines])

    def _take(self, events):
        self.events += events
        for event in events:
            if event["event"] == "listening":
                self.ports |= event["ports"]

    def signal(self, number=signal.SIGTERM):
        self._process.send_signal(number)

    def ended(self):
        """Wait for the end; return the exit status and what was logged."""
        _, log = self._process.communicate(timeout=END_TIMEOUT_S)
        return self._process.returncode, log

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=30, **options)

    def metrics(self):
        text = httpx.get(f"http://{LOOPBACK}:{self.ports['metrics']}/metrics", timeout=10).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}
