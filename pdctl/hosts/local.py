"""This machine."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdctl.agent.paths import AgentError, read_agent_file
from pdctl.agent.procfs import PROCESS_TAG, RUN_TAG
from pdctl.agent.supervisor import AGENT
from pdctl.errors import PdctlError, StepTimeoutError
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.host import RecordedLine, Sweep

START_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 30.0
LOGS_TIMEOUT_S = 30.0
SWEEP_TIMEOUT_S = 30.0  # beyond the time that it is told to wait
CONNECT_TIMEOUT_S = 5.0


class HostError(PdctlError):
    """A command failed on a host."""


class LocalHost:
    """Runs the agent's commands as processes of this machine and speaks to its socket directly."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def probe(
        self, folder: Path, ports: Sequence[int], *, python: str | None = None, packages: Sequence[str] = ()
    ) -> dict[str, Any]:
        """See Host."""
        arguments = ["--ports", *map(str, ports), "--packages", *packages]
        arguments += ["--python", python] if python else []
        output = await self._run("probe", folder, *arguments, timeout_s=PROBE_TIMEOUT_S)
        inventory: dict[str, Any] = json.loads(output)
        return inventory

    async def start_agent(self, folder: Path, run_id: str) -> None:
        """See Host. The tag lets a sweep find guardian and agent too."""
        tags = {RUN_TAG: run_id, PROCESS_TAG: AGENT}
        await self._run("serve", folder, "--run-id", run_id, "--detach", timeout_s=START_TIMEOUT_S, env=tags)

    async def connect(self, folder: Path) -> AgentClient:
        """See Host."""
        try:
            path = read_agent_file(folder)["socket"]
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise AgentGoneError(f"no agent runs on host {self.name}") from None
        except TimeoutError:
            raise AgentGoneError(f"the agent on host {self.name} accepts no connection") from None
        except AgentError as error:
            raise AgentGoneError(f"no agent can be reached on host {self.name}: {error}") from None
        client = AgentClient(self.name, reader, writer)
        await client.greet(CONNECT_TIMEOUT_S)
        return client

    async def read_logs(self, folder: Path, processes: Sequence[str], tail: int) -> list[RecordedLine]:
        """See Host."""
        output = await self._run("logs", folder, "--tail", str(tail), *processes, timeout_s=LOGS_TIMEOUT_S)
        return [RecordedLine(*json.loads(line)) for line in output.splitlines()]

    async def sweep(self, folder: Path, run_id: str, wait_s: float, *, force: bool) -> Sweep:
        """See Host."""
        arguments = ("--run-id", run_id, "--wait", str(wait_s), *(["--force"] if force else []))
        result = json.loads(await self._run("sweep", folder, *arguments, timeout_s=wait_s + SWEEP_TIMEOUT_S))
        return Sweep(_named(result["killed"]), _named(result["left"]), result["agent_lives"])

    async def _run(
        self, command: str, folder: Path, *arguments: str, timeout_s: float, env: dict[str, str] | None = None
    ) -> str:
        """Run a command of the agent to its end; -P keeps a folder named pdctl here from being imported instead."""
        argv = [sys.executable, "-P", "-m", "pdctl.agent", command, "--dir", str(folder), *arguments]
        pipe = asyncio.subprocess.PIPE
        inherited = {key: value for key, value in os.environ.items() if key not in (RUN_TAG, PROCESS_TAG)}
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**inherited, **(env or {})}
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, errors = await process.communicate()
        except TimeoutError:
            raise StepTimeoutError(f"host {self.name}: `{command}` did not finish in {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise HostError(f"host {self.name}: cannot {command}: {errors.decode(errors='replace').strip()}")
        return output.decode()


def _named(processes: list[dict[str, Any]]) -> list[str]:
    return [f"pid {process['pid']} ({process['command'][:80]})" for process in processes]
