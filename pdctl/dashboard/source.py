"""Where the dashboard's figures and lines come from."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

from pdctl.deployment.models import DeploymentStatus, LogLine
from pdctl.errors import StepTimeoutError

POLL_INTERVAL_S = 1.0
STATUS_TIMEOUT_S = 30.0


class Source(Protocol):
    """A deployment to look at."""

    async def status(self) -> DeploymentStatus:
        """Return its state and load as they are now."""

    def logs(self, *, follow: bool, tail: int) -> AsyncIterator[LogLine]:
        """Return the last ``tail`` lines of its processes and, with ``follow``, those to come."""


async def statuses(source: Source) -> AsyncIterator[DeploymentStatus]:
    """Give the deployment's state once a second."""
    while True:
        yield await read_status(source)
        await asyncio.sleep(POLL_INTERVAL_S)


async def read_status(source: Source) -> DeploymentStatus:
    """Return the deployment's state, or raise `StepTimeoutError`."""
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
