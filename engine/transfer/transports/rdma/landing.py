"""From a stripe's number, as a NIC tells of it, to its acknowledgement: when its bytes are in the pool, to be seen."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from engine.errors import TransferError
from engine.transfer.transports.rdma.memory import PoolMemory, Span

_Stripe = tuple[int, int]  # lane and number


class Landing:
    """At once where NICs write the pool itself; else a thread copies what came, in order, as prefill says where."""

    def __init__(self, memory: PoolMemory, nbytes: int, acknowledge: Callable[[int, int], None]) -> None:
        self.wants_spans = memory.bounce is not None
        self._settler = memory.bounce or memory.flush
        self._nbytes = nbytes
        self._acknowledge = acknowledge
        self._told: dict[_Stripe, list[Span]] = {}
        self._arrived: set[_Stripe] = set()
        self._settling: set[asyncio.Future[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-rdma")

    def told(self, lane: int, number: int, spans: list[Span]) -> None:
        """Prefill's word of where a stripe goes. Raises TransferError for a place outside of the pool."""
        if any(at < 0 or nbytes < 0 or at + nbytes > self._nbytes for at, nbytes in spans):
            raise TransferError("a prefill engine names a place outside of the KV pool")
        self._told[lane, number] = spans
        self._try(lane, number)

    def arrived(self, lane: int, number: int) -> None:
        """The NIC's word that a stripe is there."""
        if self._settler is None:
            self._acknowledge(lane, number)
            return
        self._arrived.add((lane, number))
        self._try(lane, number)

    def forget(self, lane: int) -> None:
        """Nothing comes over that lane any more."""
        self._told = {stripe: spans for stripe, spans in self._told.items() if stripe[0] != lane}
        self._arrived = {stripe for stripe in self._arrived if stripe[0] != lane}

    def close(self) -> None:
        """Copy nothing any more but what is being copied."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def closed(self) -> None:
        """After close(): wait until nothing is being copied."""
        if self._settling:
            await asyncio.wait(self._settling)

    def _try(self, lane: int, number: int) -> None:
        stripe = lane, number
        if self._settler is None or stripe not in self._arrived or (self.wants_spans and stripe not in self._told):
            return
        self._arrived.discard(stripe)
        spans = self._told.pop(stripe, [])
        settling = asyncio.get_running_loop().run_in_executor(self._thread, self._settler.settle, spans)
        self._settling.add(settling)
        settling.add_done_callback(partial(self._settled, lane, number))

    def _settled(self, lane: int, number: int, settling: "asyncio.Future[None]") -> None:
        self._settling.discard(settling)
        if settling.cancelled():
            return
        settling.result()  # a copy that failed is never acknowledged; the loop reports it
        self._acknowledge(lane, number)
