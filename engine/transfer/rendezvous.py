"""Where the two legs of a request meet on a decode engine, whichever comes first."""

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager

from engine.errors import TransferError
from engine.transfer.base import TransferLimits
from engine.transfer.inbound import Inbound
from engine.transfer.waits import deadline, fail

_Key = tuple[str, str]  # (prefill engine's id, request id)


class Rendezvous:
    """Joins a prefill engine's reservation with the request that the router sent here."""

    def __init__(self, limits: TransferLimits) -> None:
        self._limits = limits
        self._unclaimed: dict[_Key, tuple[Inbound, asyncio.TimerHandle]] = {}
        self._waiting: dict[_Key, asyncio.Future[Inbound]] = {}
        self._sessions: Counter[str] = Counter()  # by prefill engine; an old one may end after the next has begun

    def join(self, prefill: str) -> None:
        """A connection from that prefill engine has begun; it ends with lose()."""
        self._sessions[prefill] += 1

    def bring(self, inbound: Inbound) -> None:
        """Prefill's leg. Raises TransferError where the request has just left, such a one waits, or too many do."""
        key = (inbound.prefill, inbound.request_id)
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            if waiting.cancelled():
                raise TransferError("the request was cancelled")
            waiting.set_result(inbound)
            return
        self._make_way(key)
        if len(self._unclaimed) >= self._limits.transfers:
            raise TransferError(f"{self._limits.transfers} reservations wait for their requests", status=503)
        timer = asyncio.get_running_loop().call_later(self._limits.join_s, self._expire, key)
        self._unclaimed[key] = inbound, timer

    async def claim(self, prefill: str, request_id: str) -> Inbound:
        """The router's leg: wait for the reservation, which is the caller's to start or to drop from now on.

        Prefill reserves as soon as it has its leg, so this does not wait long for one that is dead or knows of nothing.
        Raises TransferError.
        """
        key = (prefill, request_id)
        if key in self._unclaimed:
            inbound, timer = self._unclaimed.pop(key)
            timer.cancel()
            return inbound
        if key in self._waiting:
            raise TransferError(f"request {request_id} waits for its KV already", status=409)
        if len(self._waiting) >= self._limits.transfers:
            raise TransferError(f"{self._limits.transfers} requests wait for their KV", status=503)
        waiting: asyncio.Future[Inbound] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiting
        async with self._prefill_deadline(prefill, request_id):
            try:
                return await waiting
            except asyncio.CancelledError:
                self._leave(key, waiting)
                raise

    def lose(self, prefill: str, error: TransferError) -> None:
        """A connection has ended. If it was the last, no reservation will come: fail the requests that wait for one."""
        self._sessions[prefill] -= 1
        if self._sessions[prefill]:
            return
        del self._sessions[prefill]
        for key in [key for key in self._waiting if key[0] == prefill]:
            fail(self._waiting.pop(key), error)

    def close(self) -> None:
        """Give up the reservations whose requests have not come."""
        for inbound, timer in self._unclaimed.values():
            timer.cancel()
            inbound.drop(TransferError("this engine is stopping", status=503))
        self._unclaimed.clear()

    def _prefill_deadline(self, prefill: str, request_id: str) -> AbstractAsyncContextManager[None]:
        if self._sessions[prefill]:
            return deadline(self._limits.join_s, f"prefill {prefill} to reserve blocks for {request_id}")
        return deadline(self._limits.silence_s, f"prefill {prefill} to connect and reserve blocks for {request_id}")

    def _make_way(self, key: _Key) -> None:
        """A failed reservation stays for its request to learn of; the next of that name replaces it."""
        if key not in self._unclaimed:
            return
        inbound, timer = self._unclaimed[key]
        if not inbound.dropped:
            raise TransferError(f"request {inbound.request_id} has a reservation already", status=409)
        timer.cancel()
        del self._unclaimed[key]

    def _leave(self, key: _Key, waiting: asyncio.Future[Inbound]) -> None:
        if self._waiting.get(key) is waiting:
            del self._waiting[key]
        elif not waiting.cancelled() and waiting.exception() is None:  # the reservation came in the same moment
            waiting.result().drop(TransferError("the request was cancelled"))

    def _expire(self, key: _Key) -> None:
        inbound, _ = self._unclaimed.pop(key)
        inbound.drop(TransferError(f"the router sent no such request within {self._limits.join_s:g} s"))
