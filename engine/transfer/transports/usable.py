"""The transports that an engine was asked to use, as far as this machine has what they need."""

import logging
from collections.abc import Sequence

from engine.errors import EngineError, TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Transport
from engine.transfer.doorway import Doorway
from engine.transfer.transports.cuda_ipc import CudaIpcTransport
from engine.transfer.transports.rdma.transport import RdmaTransport
from engine.transfer.transports.shm import ShmTransport
from engine.transfer.transports.tcp.transport import TcpTransport

logger = logging.getLogger(__name__)


async def start_usable(names: Sequence[str], pool: KVPool, doorway: Doorway) -> list[Transport]:
    """Start the named transports, in that order; EngineError if none can be used."""
    usable: list[Transport] = []
    reasons: list[str] = []
    for name in names:
        transport = make_transport(name, pool, doorway)
        try:
            await transport.start()
        except TransferError as error:
            reasons.append(f"{name}: {error}")
            logger.info("KV transport %s is not usable here: %s", name, error)
            continue
        usable.append(transport)
    if not usable:
        raise EngineError(f"--cache-transfer-protocol {','.join(names)}: none is usable here: {'; '.join(reasons)}")
    logger.info("KV transports: %s", ", ".join(transport.name for transport in usable))
    return usable


def make_transport(name: str, pool: KVPool, doorway: Doorway) -> Transport:
    """The transport of that name, which is not started."""
    match name:
        case "ipc":
            return CudaIpcTransport(pool) if pool.tensor.is_cuda else ShmTransport(pool)
        case "rdma":
            return RdmaTransport(pool, doorway)
        case "tcp":
            return TcpTransport(pool, doorway)
        case _:
            raise ValueError(f"no KV transport is called {name!r}")
