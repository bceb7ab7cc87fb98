"""What runs a loaded model: the engine core, and the side of KV transfer that the role has."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from engine.args import EngineArgs
from engine.core import EngineCore
from engine.server.sockets import bind_error
from engine.server.startup import Loaded
from engine.server.state import Backend, ServerState
from engine.transfer.base import Identity, Transport
from engine.transfer.blocks import Shard
from engine.transfer.checksum import PoolChecksum
from engine.transfer.doorway import Doorway
from engine.transfer.receiver import DecodeTransfer
from engine.transfer.sender import PrefillTransfer
from engine.transfer.transports.rdma.transport import RdmaTransport
from engine.transfer.transports.usable import start_usable

CORE_STOP_S = 5.0


@asynccontextmanager
async def running_backend(
    state: ServerState, loaded: Loaded, engine_id: str, on_failure: Callable[[BaseException], None]
) -> AsyncIterator[Backend]:
    """Run the model inside the block. Raises EngineError."""
    args, pool = state.args, loaded.pool
    async with AsyncExitStack() as stack:
        stack.callback(pool.close)
        doorway, transports = Doorway(), list[Transport]()
        if args.role == "decode":
            await _open(doorway, args)
            stack.push_async_callback(doorway.close)
        if args.role != "mixed":
            transports = await start_usable(args.transfer_protocols, pool, doorway)
            for transport in transports:
                stack.push_async_callback(transport.close)
        sender = receiver = None
        if args.role == "prefill":
            sender = _sender(transports, loaded, engine_id, state)
        core = _core(state, loaded, sender, on_failure)
        if sender:
            sender.start(core)
        core.start()
        stack.push_async_callback(asyncio.to_thread, core.stop, CORE_STOP_S)
        pd_comm_port = 0
        if sender:
            stack.push_async_callback(sender.close)
        if args.role == "decode":
            receiver = DecodeTransfer(transports, _identity(loaded, engine_id, state.token), PoolChecksum(pool))
            pd_comm_port = await _listen(receiver, core, args)
            stack.push_async_callback(receiver.close)
        counters = [transfer.counters for transfer in (sender, receiver) if transfer]
        rdma = [transport.memory for transport in transports if isinstance(transport, RdmaTransport)]
        state.metrics.watch(core.stats, counters, rdma[0] if rdma else None)
        names = tuple(transport.name for transport in transports)
        yield Backend(
            core,
            loaded.tokenizer,
            loaded.max_model_len,
            loaded.vocab_size,
            sender,
            receiver,
            pd_comm_port,
            doorway.port,
            names,
        )


def _sender(transports: list[Transport], loaded: Loaded, engine_id: str, state: ServerState) -> PrefillTransfer:
    return PrefillTransfer(
        transports,
        _identity(loaded, engine_id, state.token),
        block_size=loaded.pool.layout.block_size,
        checksum=PoolChecksum(loaded.pool) if state.args.kv_checksum else None,
    )


def _identity(loaded: Loaded, engine_id: str, token: str | None) -> Identity:
    layout = loaded.pool.layout
    heads = layout.num_kv_heads
    shard = Shard(0, heads, layout.block_bytes // heads, loaded.pool.num_blocks)
    return Identity(engine_id, loaded.compat, layout.describe(), shard, token)


def _core(
    state: ServerState, loaded: Loaded, sender: PrefillTransfer | None, on_failure: Callable[[BaseException], None]
) -> EngineCore:
    return EngineCore(
        loaded.runner,
        max_num_seqs=state.args.max_num_seqs,
        max_batched_tokens=state.args.max_num_batched_tokens,
        max_model_len=loaded.max_model_len,
        prefix_caching=state.args.prefix_caching,
        on_tokens=state.streams.on_tokens,
        on_prefilled=sender.on_prefilled if sender else None,
        on_failure=on_failure,
    )


async def _listen(receiver: DecodeTransfer, core: EngineCore, args: EngineArgs) -> int:
    try:
        return await receiver.start(core, args.host, args.pd_comm_port)
    except OSError as error:
        raise bind_error(error, args.host, args.pd_comm_port, "--pd-comm-port") from None


async def _open(doorway: Doorway, args: EngineArgs) -> None:
    try:
        await doorway.open(args.host, args.rdma_comm_port)
    except OSError as error:
        raise bind_error(error, args.host, args.rdma_comm_port, "--rdma-comm-ports") from None
