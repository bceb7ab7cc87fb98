"""The tcp transport: always there, wherever two engines reach each other at all."""

import socket

import msgspec

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Target
from engine.transfer.doorway import Doorway, knock
from engine.transfer.transports.tcp.inlet import Offer, TcpInlet
from engine.transfer.transports.tcp.writer import TcpWriter

STREAMS = 4  # of a pair; measured over loopback on two cores: two are as fast
STALL_S = 10.0  # without a byte sent, received or confirmed: the peer is taken for stalled, and the pair is lost


class TcpTransport:
    """Moves KV through TCP connections, which decode's doorway takes."""

    name = "tcp"

    def __init__(self, pool: KVPool, doorway: Doorway, *, streams: int = STREAMS, stall_s: float = STALL_S) -> None:
        """`streams` is for prefill engines that connect to this one."""
        self._pool = pool
        self._doorway = doorway
        self._streams = streams
        self._stall_s = stall_s

    async def start(self) -> None:
        """Nothing is to be done."""

    async def close(self) -> None:
        """Nothing is held."""

    def open_inlet(self) -> TcpInlet:
        """Make the way in for one prefill engine."""
        return TcpInlet(self._pool, self._doorway, self._streams, self._stall_s)

    async def connect(self, offer: bytes, target: Target) -> TcpWriter:
        """Make the connections that a decode engine offers. Raises TransferError with the reason."""
        try:
            terms = msgspec.msgpack.decode(offer, type=Offer)
        except msgspec.DecodeError as error:
            raise TransferError(f"its tcp offer is malformed: {error}") from None
        if terms.pool_bytes < target.num_blocks * target.fit.target_stride:
            raise TransferError(f"its pool has {terms.pool_bytes} bytes, less than {target.num_blocks} blocks")
        return TcpWriter(await _streams(terms, target.host), self._pool, target.fit, self._stall_s)


async def _streams(terms: Offer, host: str) -> list[socket.socket]:
    socks: list[socket.socket] = []
    try:
        while len(socks) < terms.streams:
            socks.append(await knock(host, terms.port, terms.key))
    except BaseException as error:
        for sock in socks:
            sock.close()
        if not isinstance(error, OSError | TransferError):
            raise
        raise TransferError(f"no data connection to {host}:{terms.port}: {error}") from None
    return socks
