"""KV by RDMA: prefill's NICs write into decode's pool, with no processor of either side in between.

One-sided writes over reliable connections, a lane for each pair of NICs. The last message of what a push sends over a
lane carries a number, which decode acknowledges over a TCP connection when its own NIC has told it of the number: only
then is everything before visible in its memory. That connection's end is the writer's end, and decode can cut a writer
off at any time by destroying its own queue pairs.
"""

import asyncio
import os
from typing import TYPE_CHECKING

from engine.transfer.base import Inlet, Target, Writer
from engine.transfer.doorway import Doorway
from engine.transfer.transports.rdma.pyverbs_package import make_importable
from engine.transfer.transports.rdma.settings import read_settings

if TYPE_CHECKING:
    from engine.kv.pool import KVPool
    from engine.transfer.transports.rdma.nics import Nics


class RdmaTransport:
    """Moves KV between the pools of hosts with InfiniBand or RoCE. What needs pyverbs is imported by start()."""

    name = "rdma"

    def __init__(self, pool: "KVPool", doorway: Doorway) -> None:
        self._pool = pool
        self._doorway = doorway
        self._nics: Nics | None = None

    @property
    def memory(self) -> str:
        """How the NICs reach the pool: "host", "dmabuf", "peermem" or "bounce". Known when started."""
        return self._started().memory.kind

    async def start(self) -> None:
        """Open the NICs and register the pool. Raises TransferError: not usable here, and why."""
        settings = read_settings(os.environ)
        make_importable()
        from engine.transfer.transports.rdma.nics import open_nics

        self._nics = await asyncio.to_thread(open_nics, settings, self._pool)

    def open_inlet(self) -> Inlet:
        """Make the way in for one prefill engine. The doorway is open."""
        from engine.transfer.transports.rdma.inlet import RdmaInlet

        return RdmaInlet(self._started(), self._doorway)

    async def connect(self, offer: bytes, target: Target) -> Writer:
        """Connect with the pool behind a decode engine's offer. Raises TransferError with the reason."""
        from engine.transfer.transports.rdma.dialing import dial

        return await dial(self._started(), offer, target)

    async def close(self) -> None:
        """Unpin the pool and close the NICs."""
        if self._nics is not None:
            await asyncio.to_thread(self._nics.close)
            self._nics = None

    def _started(self) -> "Nics":
        if self._nics is None:
            raise RuntimeError("the RDMA transport is not started")
        return self._nics
