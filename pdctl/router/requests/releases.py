"""Frees what prefills hold for decodes that have failed: another decode takes the KV, and drops it."""

import asyncio
import logging

from pdctl.router.engines.instance import Instance
from pdctl.router.figures.metrics import Metrics
from pdctl.router.upstream.fetch import FetchError, fetch

log = logging.getLogger(__name__)


class Releases:
    """Those that are under way. No request waits for them."""

    def __init__(self, metrics: Metrics, timeout: float) -> None:
        """`timeout`: seconds for each. A prefill frees what nobody has taken by itself, after half a minute."""
        self._metrics = metrics
        self._timeout = timeout
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, decode: Instance, path: bytes, headers: bytes, body: bytes) -> None:
        """Send a decode a request of one token that has it take the KV."""
        task = asyncio.get_running_loop().create_task(self._release(decode, path, headers, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give them up."""
        for task in self._tasks:
            task.cancel()

    async def _release(self, decode: Instance, path: bytes, headers: bytes, body: bytes) -> None:
        decode.load.add(0)
        try:
            answer = await fetch(decode.pool, b"POST", path, headers=headers, body=body, timeout=self._timeout)
            reason = "" if answer.status == 200 else f"it answered {answer.status}"
        except FetchError as error:
            reason = str(error)
        finally:
            decode.load.remove(0)
        self._metrics.kv_releases["failed" if reason else "done"] += 1
        if reason:
            log.warning("%s did not take KV that another decode has left at its prefill: %s", decode.name, reason)
