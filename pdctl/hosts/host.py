"""What every way of reaching a host offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pdctl.hosts.client import AgentClient


class RecordedLine(NamedTuple):
    """A line of a log file."""

    process: str
    time: float
    text: str


class Sweep(NamedTuple):
    """What a sweep killed, and what it could not: "pid 123 (command line)"."""

    killed: list[str]
    left: list[str]
    agent_lives: bool


class Host(Protocol):
    """A host on which an agent can run. ``folder`` is the agent's folder there."""

    name: str

    async def probe(
        self, folder: Path, ports: Sequence[int], *, python: str | None = None, packages: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What the host has, and who holds the ports; see pdctl/planning/inventory.py.

        `python`: the interpreter whose packages are asked for (None: the agent's own).
        """

    async def start_agent(self, folder: Path, run_id: str) -> None:
        """Start an agent that outlives the caller; returns when it listens."""

    async def connect(self, folder: Path) -> AgentClient:
        """Open a connection to the agent; raises AgentGoneError when there is none."""

    async def read_logs(self, folder: Path, processes: Sequence[str], tail: int) -> list[RecordedLine]:
        """The last lines of each process's log (no processes: of all), from the files: works without an agent."""

    async def sweep(self, folder: Path, run_id: str, wait_s: float, *, force: bool) -> Sweep:
        """Kill what lives of a run if its agent ends within ``wait_s``; with ``force`` in any case, agent included."""
