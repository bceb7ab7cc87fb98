"""Waiting with a name, and waiting for what cannot be interrupted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from engine.errors import TransferError

_T = TypeVar("_T")


@asynccontextmanager
async def deadline(seconds: float, awaited: str) -> AsyncIterator[None]:
    """Raise TransferError naming what was waited for when the body takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TransferError(f"waited {seconds:g} s for {awaited}", status=504) from None


async def finish(future: "asyncio.Future[_T]") -> _T:
    """Wait until the future is done, whatever happens to the waiting task; its cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


def fail(future: "asyncio.Future[_T]", error: Exception) -> None:
    """Fail a future that is not done, and that perhaps nobody awaits."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # asyncio would report an error that nobody has asked for
