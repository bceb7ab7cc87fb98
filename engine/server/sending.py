"""Sending to a client that may not read."""

import asyncio
from collections.abc import Awaitable

from aiohttp import web


async def send(request: web.Request, sending: Awaitable[None], limit_s: float) -> None:
    """Wait for a write to the client; where it reads nothing for `limit_s`, cut it off. Raises ConnectionResetError."""
    try:
        async with asyncio.timeout(limit_s):
            await sending
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()  # else the end of the response would wait for this client too
        raise ConnectionResetError(f"the client has read nothing for {limit_s:.0f} s") from None
