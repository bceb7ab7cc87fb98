"""Work that has to come to its end though its caller is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def to_its_end(work: Callable[[asyncio.Event], Coroutine[object, object, Result]]) -> Result:
    """The result of ``work(hurry)``: cancelling the caller does not stop it, but sets ``hurry``."""
    hurry = asyncio.Event()
    task = asyncio.create_task(work(hurry))
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
            break
        hurry.set()
    return task.result()


async def until_hurried(work: Coroutine[object, object, None], hurry: asyncio.Event) -> bool:
    """Do the work, or give it up once ``hurry`` is set; whether it came to its end."""
    task = asyncio.create_task(work)
    impatience = asyncio.create_task(hurry.wait())
    try:
        await asyncio.wait({task, impatience}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in (task, impatience):
            pending.cancel()
        await asyncio.wait({task, impatience})
    if task.cancelled():
        return False
    task.result()
    return True
