"""Real agents with real processes, and a look at /proc that does not go through the code under test."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pdctl.hosts.client import AgentClient
from pdctl.hosts.open import open_host

DEADLINE_S = 20.0


def living(run_id: str) -> list[psutil.Process]:
    """Every live process whose environment carries the run's tag."""
    return [process for process in psutil.process_iter() if _carries(process, run_id)]


def _carries(process: psutil.Process, run_id: str) -> bool:
    try:
        return process.environ().get("PDCTL_RUN") == run_id and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that announces itself to nobody."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)
    return value


async def eventually_async(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.02)
    return value


@dataclass
class Agent:
    """One agent in a folder of its own."""

    folder: Path
    run_id: str
    clients: list[AgentClient] = field(default_factory=list)

    async def start(self) -> "Agent":
        await open_host("here").start_agent(self.folder, self.run_id)
        return self

    @property
    def pid(self) -> int:
        return int(self._description()["pid"])

    @property
    def guardian_pid(self) -> int:
        return int(self._description()["guardian_pid"])

    def _description(self) -> dict[str, Any]:
        return json.loads((self.folder / "agent.json").read_text())

    async def connect(self) -> AgentClient:
        client = await open_host("here").connect(self.folder)
        self.clients.append(client)
        return client

    async def events(self, **params: object) -> "Events":
        """A subscription on a connection of its own."""
        client = await self.connect()
        await client.call("subscribe", **params)
        return Events(client)

    def sweep(self, wait_s: float = 10.0, *, force: bool = True) -> dict[str, Any]:
        command = [sys.executable, "-m", "pdctl.agent", "sweep", "--dir", self.folder, "--run-id", self.run_id]
        command += ["--force"] if force else []
        done = subprocess.run(
            [*command, "--wait", str(wait_s)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


class Events:
    """What a subscriber gets, sorted."""

    def __init__(self, client: AgentClient) -> None:
        self.client = client
        self.lines: list[tuple[str, str]] = []
        self.lost = 0
        self.states: list[dict[str, Any]] = []

    async def until(self, condition: Callable[["Events"], Any]) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while not (value := condition(self)):
                self.take(await self.client.next_event())
        return value

    async def until_state(self, name: str, state: str) -> dict[str, Any]:
        return await self.until(
            lambda events: next((s for s in events.states if (s["name"], s["state"]) == (name, state)), None)
        )

    async def until_line(self, text: str) -> None:
        await self.until(lambda events: any(line == text for _, line in events.lines))

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "process":
            self.states.append(event["process"])
        else:
            self.lines += [(name, text) for name, _, text in event["lines"]]
            self.lost += event["lost"]


def python(code: str) -> list[str]:
    """A command line that runs the code, quickly."""
    return [sys.executable, "-S", "-c", code]


def new_run_id() -> str:
    return f"test{os.urandom(6).hex()}"


# Prints the pids of descendants that try to get away: a child in a session of its own, and one that was forked twice.
ESCAPING = """
import os, sys, time, subprocess
def say(text): os.write(1, text.encode() + b"\\n")  # at once: others write there too
a = subprocess.Popen(["sleep", "1000"], start_new_session=True)
say(f"setsid {a.pid}")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        say(f"twice {os.getpid()}")
        time.sleep(1000)
    os._exit(0)
os.wait()
b = subprocess.Popen(["env", "-i", "sleep", "1001"], start_new_session=True)
say(f"untagged {b.pid}")
"""


async def all_escaped(events: Events) -> list[int]:
    """The pids that ESCAPING prints, once it has printed all."""
    await events.until(lambda events: len(_escaped(events)) == 3)
    return _escaped(events)


def _escaped(events: Events) -> list[int]:
    return [int(text.split()[1]) for _, text in events.lines if text.split()[0] in ("setsid", "twice", "untagged")]
