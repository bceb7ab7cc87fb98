"""The transports of a measuring process."""

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Transport
from engine.transfer.doorway import Doorway
from engine.transfer.transports.usable import make_transport
from engine.transfer.waits import deadline

_START_S = 60.0  # a large pool is registered


async def start_each(names: list[str], pool: KVPool, doorway: Doorway) -> tuple[dict[str, Transport], dict[str, str]]:
    """The transports that can be used here, and why the others cannot."""
    usable: dict[str, Transport] = {}
    problems: dict[str, str] = {}
    for name in names:
        transport = make_transport(name, pool, doorway)
        try:
            async with deadline(_START_S, f"{name} to start"):
                await transport.start()
        except TransferError as error:
            problems[name] = str(error)
        else:
            usable[name] = transport
    return usable, problems
