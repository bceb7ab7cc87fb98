"""Tells the router that this engine is there: again and again, so that a restarted router finds it too."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from engine.transfer.base import Peer

INTERVAL_S = 5.0
TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class Registration:
    """The heartbeat. Logs changes, not beats."""

    def __init__(
        self,
        router: str,
        token: str | None,
        payload: Callable[[], dict[str, Any]],
        on_decodes: Callable[[list[Peer]], None] | None = None,
    ) -> None:
        """`on_decodes` is told after each beat which decode engines there are."""
        self._url = f"http://{router}/register"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._payload = payload
        self._on_decodes = on_decodes
        self._outcome = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Register now, and then every INTERVAL_S."""
        self._task = asyncio.create_task(self._beat())
        self._task.add_done_callback(_log_end)

    async def stop(self) -> None:
        """Say once more how this engine is (paused), then nothing: silence unregisters it."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        async with self._session() as session:
            await self._register(session)

    async def _beat(self) -> None:
        async with self._session() as session:
            while True:
                self._note(await self._register(session))
                await asyncio.sleep(INTERVAL_S)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def _register(self, session: aiohttp.ClientSession) -> str:
        """Return what came of it, in words."""
        try:
            async with session.post(self._url, json=self._payload()) as response:
                if response.status == 200:
                    self._meet(await response.read())
                    return "registered"
                return f"refused with status {response.status}: {(await response.text(errors='replace'))[:500]}"
        except TimeoutError:
            return f"not reached: no answer within {TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"not reached: {error}"

    def _meet(self, answer: bytes) -> None:
        if self._on_decodes is None:
            return
        try:
            decodes = msgspec.json.decode(answer, type=_Answer).decodes
        except msgspec.DecodeError as error:
            logger.warning("router %s: its answer is not understood: %s", self._url, error)
            return
        self._on_decodes([Peer(one.host_ip, one.connector_port) for one in decodes])

    def _note(self, outcome: str) -> None:
        if outcome == self._outcome:
            return
        self._outcome = outcome
        level = logging.INFO if outcome == "registered" else logging.WARNING
        logger.log(level, "router %s: %s", self._url, outcome)


class _Decode(msgspec.Struct):
    host_ip: str
    connector_port: int


class _Answer(msgspec.Struct):
    decodes: list[_Decode] = []


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("registering with the router has ended", exc_info=error)
