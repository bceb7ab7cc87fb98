"""An engine as its agent starts it: a process with a notify pipe."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

START_TIMEOUT_S = 60
END_TIMEOUT_S = 30
LOOPBACK = "127.0.0.1"
LENGTH = 256
FLAGS = ("--port", "0", "--metrics-port", "0", "--max-model-len", str(LENGTH), "--num-gpu-blocks-override", "64")


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

    def moved(self, direction, transport="ipc"):
        """KV bytes, whoever the peers are."""
        found = re.compile(
            rf'pdctl:kv_transfer_bytes_total{{direction="{direction}",peer="[^"]+",transport="{transport}"}}'
        )
        return sum(value for name, value in self.metrics().items() if found.fullmatch(name))

    def until_metric(self, name, value):
        """Wait until the engine publishes that."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while (seen := self.metrics()[name]) != value:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is {seen}, not {value}, after {END_TIMEOUT_S} s")

    def until_idle(self):
        """Wait until no block is in use and nothing runs, waits, is held or reserved."""
        for name in ("running", "waiting", "held", "reserved"):
            self.until_metric(f"pdctl:num_requests_{name}", 0)
        self.until_metric("pdctl:kv_blocks_free", self.metrics()["pdctl:kv_blocks_total"])


def pair_info(prefill, decode):
    """What the router adds to a body for these two."""
    return {
        "prefill_ip": LOOPBACK,
        "prefill_port": prefill.ports["api"],
        "decode_ip": LOOPBACK,
        "decode_port": decode.ports["api"],
        "prefill_connector_port": 0,
        "decode_connector_port": decode.ports["pd-comm"],
        "decode_device_ids": [],
        "decode_rdma_ports": [],
        "transfer_protocol": "ipc",
        "decode_tp_size": 1,
    }


def legs(prefill, decode, request_id, path="/v1/completions", **body):
    """Post the body to both engines at once, as the router does; return both responses (None: it died)."""
    body |= {"request_id": request_id, "disaggregate_info": pair_info(prefill, decode)}
    with ThreadPoolExecutor() as threads:
        posts = [threads.submit(engine.post, path, body) for engine in (prefill, decode)]
    return tuple(None if isinstance(post.exception(), httpx.TransportError) else post.result() for post in posts)
