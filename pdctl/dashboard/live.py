"""A deployment as its files say now: it may be started anew, or its plan changed, while it is looked at."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import BinaryIO, NamedTuple

from rich.console import Console

from pdctl.dashboard.run import run_dashboard
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.drain import drain, undrain
from pdctl.deployment.follow import NOTE, Lines, merged
from pdctl.deployment.models import DeploymentStatus, LogLine
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import PdctlError
from pdctl.planning.plan import Plan

DRAIN_S = 300.0  # for requests in flight to end
_POLL_S = 0.2


async def show_deployment(folder: DeploymentFolder, console: Console, *, quit_label: str = "quit view") -> None:
    """Show the dashboard of a deployment; see `run_dashboard`."""
    source = LiveDeployment(folder)
    try:
        await run_dashboard(source, console, quit_label=quit_label)
    finally:
        await source.close()


class CommandError(PdctlError):
    """A command of pdctl failed."""


class _Version(NamedTuple):
    run_id: str
    plan: Plan | None


class _ChangedError(Exception):
    """Another run, or another plan."""


class LiveDeployment:
    """A source of the dashboard. What is asked of it goes to the processes of the run and of the plan that are now."""

    def __init__(self, folder: DeploymentFolder) -> None:
        self._folder = folder
        self._deployment = Deployment.attach(folder)
        self._version = self._read_version()
        self._changed = asyncio.Event()  # set once: then there is a new one

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self._folder.name

    def plan(self) -> Plan | None:
        """Return the plan as it was at the last look."""
        return self._version.plan

    async def status(self) -> DeploymentStatus:
        """Return its state as it is now."""
        version = self._read_version()
        if version != self._version:
            before, self._deployment = self._deployment, Deployment.attach(self._folder)
            self._version = version
            self._changed.set()
            self._changed = asyncio.Event()
            await before.close()
        return await self._deployment.status()

    async def logs(self, *, follow: bool, tail: int) -> AsyncIterator[LogLine]:
        """Return its last lines and, with ``follow``, those to come, also of later runs: see `status`."""
        seen: dict[str, float] = {}
        while True:
            changed = self._changed
            sources = [self._lines(follow, tail), *([_until(changed)] if follow else [])]
            try:
                async with aclosing(merged(sources)) as lines:
                    async for line in lines:
                        if line.process == NOTE or line.time > seen.get(line.process, 0.0):
                            seen[line.process] = line.time
                            yield line
                return
            except _ChangedError:
                continue

    async def restart(self, process: str) -> None:
        """Restart a process by a command that goes on if this process ends; raises CommandError."""
        await run_pdctl("restart", process, "--name", self.name, state_root=str(self._folder.path.parent))

    async def drain(self, process: str) -> None:
        """See `pdctl.deployment.drain`."""
        async with self._attached() as deployment:
            await drain(deployment, process, timeout_s=DRAIN_S)

    async def undrain(self, process: str) -> None:
        """See `pdctl.deployment.drain`."""
        async with self._attached() as deployment:
            await undrain(deployment, process)

    async def close(self) -> None:
        """Close the connections; the deployment goes on."""
        await self._deployment.close()

    def _read_version(self) -> _Version:
        state = self._folder.read_state()
        return _Version(state.run_id if state else "", self._folder.read_plan())

    async def _lines(self, follow: bool, tail: int) -> Lines:
        """The lines of the run and the plan that are now."""
        async with self._attached() as deployment:
            async for line in deployment.logs(follow=follow, tail=tail):
                yield line

    @asynccontextmanager
    async def _attached(self) -> AsyncIterator[Deployment]:
        """The deployment by connections of its own."""
        deployment = Deployment.attach(self._folder)
        try:
            yield deployment
        finally:
            await deployment.close()


async def run_pdctl(*arguments: str, state_root: str) -> None:
    """Run a command of pdctl; raises CommandError with the line that it failed with.

    It is no child that dies with us: a view that is left, or whose terminal is gone, must not leave half a restart.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: ASYNC220 asyncio's own would kill it when the loop ends
            [sys.executable, "-P", "-m", "pdctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"PDCTL_STATE_DIR": state_root},
            start_new_session=True,
        )
        while process.poll() is None:  # noqa: ASYNC110 nothing tells
            await asyncio.sleep(_POLL_S)
        if process.returncode:
            raise CommandError(_first_line(errors) or f"it ended with code {process.returncode}")


def _first_line(output: BinaryIO) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")] or lines
    return said[0].removeprefix("error: ") if said else ""


async def _until(changed: asyncio.Event) -> Lines:
    await changed.wait()
    raise _ChangedError
    yield  # a source of lines, which has none
