"""This machine: the agent's commands are processes of ours, and its socket is a file here."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdctl.agent.paths import AgentError, read_agent_file
from pdctl.agent.procfs import PROCESS_TAG, RUN_TAG
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.command import Feed, Finished, run_command


class LocalCarrier:
    """See Carrier."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def run(self, arguments: Sequence[str], *, timeout_s: float, feed: Feed, env: Mapping[str, str]) -> Finished:
        """See Carrier. -P keeps a folder named pdctl here from being imported instead."""
        argv = [sys.executable, "-P", "-m", "pdctl.agent", *arguments]
        inherited = {key: value for key, value in os.environ.items() if key not in (RUN_TAG, PROCESS_TAG)}
        return await run_command(argv, timeout_s=timeout_s, feed=feed, env={**inherited, **env})

    def command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """See Carrier."""
        return ["env", *(f"{key}={value}" for key, value in env.items()), *argv]

    async def connect(self, folder: Path, timeout_s: float) -> AgentClient:
        """See Carrier."""
        try:
            path = read_agent_file(folder)["socket"]
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise AgentGoneError(f"no agent runs on host {self._name}") from None
        except TimeoutError:
            raise AgentGoneError(f"the agent on host {self._name} accepts no connection") from None
        except AgentError as error:
            raise AgentGoneError(f"no agent can be reached on host {self._name}: {error}") from None
        client = AgentClient(self._name, reader, writer)
        await client.greet(timeout_s)
        return client
