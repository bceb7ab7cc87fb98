"""What can be done on a host, however its agent is reached."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pdctl.agent.procfs import PROCESS_TAG, RUN_TAG
from pdctl.agent.supervisor import AGENT
from pdctl.errors import PdctlError, StepTimeoutError
from pdctl.hosts.client import AgentClient
from pdctl.hosts.command import NOTHING, Feed, Finished

START_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 30.0
LOGS_TIMEOUT_S = 30.0
SWEEP_TIMEOUT_S = 30.0  # beyond the time that it is told to wait
CONNECT_TIMEOUT_S = 10.0


class HostError(PdctlError):
    """A command failed on a host."""


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


class Carrier(Protocol):
    """How bytes get to a host's agent."""

    async def run(self, arguments: Sequence[str], *, timeout_s: float, feed: Feed, env: Mapping[str, str]) -> Finished:
        """Run a command of the agent there to its end.

        Raises TimeoutError, and HostUnreachableError where the host cannot be reached.
        """

    def command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """A command line of this machine that runs a program there; its input and output are the program's."""

    async def connect(self, folder: Path, timeout_s: float) -> AgentClient:
        """Open a connection to the agent that serves a folder, as `Host.connect` does."""


class Host:
    """A host on which an agent can run. ``folder`` is the agent's folder there.

    ``state``: where it keeps the files of deployments; None: where this machine does.
    """

    def __init__(self, name: str, carrier: Carrier, state: Path | None = None) -> None:
        self.name = name
        self._carrier = carrier
        self._state = state

    def folder_of(self, deployment: Path) -> Path:
        """The folder of a deployment's agent, from the deployment's folder here; it may begin with ~."""
        return (self._state / deployment.name if self._state else deployment) / "hosts" / self.name

    async def probe(
        self,
        folder: Path,
        ports: Sequence[int],
        *,
        python: str | None = None,
        packages: Sequence[str] = (),
        environment: str = "",
    ) -> dict[str, Any]:
        """What the host has, and who holds the ports; see pdctl/planning/inventory.py.

        `folder`: where this machine keeps the files of deployments. `python`: the interpreter whose packages are asked
        for; without it that of the `environment` (see prepare.py), if it is complete there, else the agent's own.
        """
        arguments = ["--ports", *map(str, ports), "--packages", *packages]
        arguments += ["--python", python] if python else []
        arguments += ["--environment", environment] if environment else []
        output = await self.run("probe", self._state or folder, *arguments, timeout_s=PROBE_TIMEOUT_S)
        inventory: dict[str, Any] = json.loads(output)
        return inventory

    async def start_agent(self, folder: Path, run_id: str) -> None:
        """Start an agent that outlives the caller; returns when it listens. The tag lets a sweep find it too."""
        tags = {RUN_TAG: run_id, PROCESS_TAG: AGENT}
        await self.run("serve", folder, "--run-id", run_id, "--detach", timeout_s=START_TIMEOUT_S, env=tags)

    async def connect(self, folder: Path) -> AgentClient:
        """Open a connection to the agent.

        Raises AgentGoneError when there is none, and HostUnreachableError when that cannot be known.
        """
        return await self._carrier.connect(folder, CONNECT_TIMEOUT_S)

    async def read_logs(
        self, folder: Path, processes: Sequence[str], tail: int, run_id: str | None = None
    ) -> list[RecordedLine]:
        """The last lines of each process's log (no processes: of all), from the files: works without an agent.

        ``run_id``: those of an agent's run only.
        """
        run = ("--run-id", run_id) if run_id is not None else ()
        output = await self.run("logs", folder, "--tail", str(tail), *run, *processes, timeout_s=LOGS_TIMEOUT_S)
        return [RecordedLine(*json.loads(line)) for line in output.splitlines()]

    async def sweep(self, folder: Path, run_id: str, wait_s: float, *, force: bool, for_good: bool = False) -> Sweep:
        """Kill what lives of a run if its agent ends within ``wait_s``; with ``force`` in any case, agent included.

        ``for_good``: afterwards no agent of the run can begin there any more.
        """
        flags = [*(["--force"] if force else []), *(["--for-good"] if for_good else [])]
        arguments = ("--run-id", run_id, "--wait", str(wait_s), *flags)
        result = json.loads(await self.run("sweep", folder, *arguments, timeout_s=wait_s + SWEEP_TIMEOUT_S))
        return Sweep(_named(result["killed"]), _named(result["left"]), result["agent_lives"])

    def command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """A command line of this machine that runs a program there; its input and output are the program's."""
        return self._carrier.command(argv, env)

    async def remains(self, folder: Path, ports: Sequence[int], since: float) -> list[str]:
        """What is left of a run whose processes have ended: ports still held, files in shared memory."""
        arguments = ("--since", str(since), "--ports", *map(str, ports))
        found = json.loads(await self.run("remains", folder, *arguments, timeout_s=PROBE_TIMEOUT_S))
        held = [f"port {port} is held by {holder}" for port, holder in found["ports"].items()]
        files = " ".join(found["shared_memory"])
        return held + ([f"shared memory is left, remove it with `rm {files}`"] if files else [])

    async def run(
        self,
        command: str,
        folder: Path,
        *arguments: str,
        timeout_s: float,
        feed: Feed = NOTHING,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command of the agent to its end; returns what it wrote.

        Raises HostError when it fails, StepTimeoutError, and HostUnreachableError.
        """
        argv = [command, "--dir", str(folder), *arguments]
        try:
            finished = await self._carrier.run(argv, timeout_s=timeout_s, feed=feed, env=env or {})
        except TimeoutError:
            raise StepTimeoutError(f"host {self.name}: `{command}` did not finish in {timeout_s:g} s") from None
        if finished.code != 0:
            raise HostError(f"host {self.name}: cannot {command}: {finished.errors}")
        return finished.output


def _named(processes: list[dict[str, Any]]) -> list[str]:
    return [f"pid {process['pid']} ({process['command'][:80]})" for process in processes]
