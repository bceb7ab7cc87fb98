"""A request to the router itself whose answer takes a while."""

import asyncio
import logging
from collections.abc import Awaitable

import msgspec

from pdctl.router.client.server import Client
from pdctl.router.messages import JSON

log = logging.getLogger(__name__)

Reply = tuple[int, object]  # a status, and what is answered: JSON, or bytes as they are


class Job:
    """It is answered when its work is done, and given up when its client leaves."""

    def __init__(self, client: Client, work: Awaitable[Reply], content_type: bytes = JSON) -> None:
        self._client = client
        self._work = work
        self._content_type = content_type
        self._task = asyncio.get_running_loop().create_task(self._run())

    def client_left(self) -> None:
        """Nobody waits any more."""
        self._task.cancel()

    def pause(self) -> None:
        """Its answer is small."""

    def resume(self) -> None:
        """Its answer is small."""

    async def _run(self) -> None:
        try:
            status, answer = await self._work
        except Exception:
            log.exception("a control call failed")
            status, answer = 500, {"detail": "internal error: see the router's log"}
        body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        self._client.reply(status, body, content_type=self._content_type)
