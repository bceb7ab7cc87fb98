"""`python -m engine.transfer.measure target` or `source`: started in pairs by `pdctl bench transfer`.

The first line on stdin says what to do, the key to the target included: nothing secret is on a command line. What comes
of it goes to stdout as lines of JSON. The end of stdin says that pdctl has gone: the process ends with it.
"""

import asyncio
import logging
import sys

import msgspec
import uvloop

from engine.errors import EngineError, TransferError
from engine.transfer.measure.source import run_source
from engine.transfer.measure.target import run_target
from pdctl.bench.transfer.messages import SourceOrders, TargetOrders

logger = logging.getLogger(__name__)


def main(role: str) -> int:
    """Be the target or the source; return the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(role))
    except (EngineError, TransferError) as error:
        logger.error("%s", error)
        return 1


async def _run(role: str) -> int:
    stdin = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(stdin)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    orders = await stdin.readline()
    if not orders:
        return 1
    work = asyncio.create_task(_work(role, orders))
    gone = asyncio.create_task(stdin.read())
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        gone.cancel()
        work.result()
        return 0
    logger.error("pdctl has gone")
    work.cancel()
    await asyncio.wait({work})
    return 1


async def _work(role: str, orders: bytes) -> None:
    if role == "target":
        await run_target(msgspec.json.decode(orders, type=TargetOrders), _say)
    else:
        await run_source(msgspec.json.decode(orders, type=SourceOrders), _say)


def _say(message: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
