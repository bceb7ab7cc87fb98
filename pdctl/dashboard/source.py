"""Where the dashboard's figures and lines come from, and who does what its user wants done."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from pdctl.deployment.models import DeploymentStatus, LogLine
from pdctl.errors import NotFoundError, PdctlError, StateError, StepTimeoutError
from pdctl.planning.plan import Plan

POLL_INTERVAL_S = 1.0
STATUS_TIMEOUT_S = 30.0
RETRY_LOGS_S = 5.0
_FATAL = (NotFoundError, StateError)  # there is no such deployment any more, or its files cannot be read

OnTrouble = Callable[[PdctlError], None]


class Source(Protocol):
    """A deployment to look at."""

    async def status(self) -> DeploymentStatus:
        """Return its state and load as they are now."""

    def logs(self, *, follow: bool, tail: int) -> AsyncIterator[LogLine]:
        """Return the last ``tail`` lines of its processes and, with ``follow``, those to come."""

    def plan(self) -> Plan | None:
        """Return its plan as it is now."""

    async def restart(self, process: str) -> None:
        """Restart a process, to its end; raises PdctlError. It goes on when it is cancelled."""

    async def drain(self, process: str) -> None:
        """Drain an engine; returns when no request is in flight there. Raises PdctlError."""

    async def undrain(self, process: str) -> None:
        """Give an engine requests again; raises PdctlError."""


async def statuses(source: Source, on_trouble: OnTrouble) -> AsyncIterator[DeploymentStatus]:
    """Give the deployment's state once a second; what keeps it from being known for a while is told."""
    while True:
        try:
            yield await _read_status(source)
        except _FATAL:
            raise
        except PdctlError as error:
            on_trouble(error)
        await asyncio.sleep(POLL_INTERVAL_S)


async def log_lines(source: Source, tail: int, on_trouble: OnTrouble) -> AsyncIterator[LogLine]:
    """Give the last and the new lines, for ever; what keeps them from being read for a while is told."""
    while True:
        try:
            async for line in source.logs(follow=True, tail=tail):
                yield line
            await asyncio.Event().wait()  # the processes' output ended; their states still change
        except _FATAL:
            raise
        except PdctlError as error:
            on_trouble(error)
        await asyncio.sleep(RETRY_LOGS_S)
        tail = 0  # those before have been given


async def _read_status(source: Source) -> DeploymentStatus:
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            return await source.status()
    except TimeoutError as error:
        raise StepTimeoutError(f"no state of the deployment came within {STATUS_TIMEOUT_S:g} s") from error


async def run_until_first(*works: Coroutine[Any, Any, None]) -> None:
    """Run all ``works`` until one returns or fails; the others are cancelled, and the failure is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
