"""What runs a loaded model: the engine core, and the side of KV transfer that the role has."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from engine.args import EngineArgs
from engine.core import EngineCore
from engine.server.sockets import bind_error
from engine.server.startup import Loaded
from engine.server.state import Backend, ServerState
from engine.transfer.base import Identity
from engine.transfer.receiver import DecodeTransfer
from engine.transfer.sender import PrefillTransfer
from engine.transfer.shm import ShmTransport

CORE_STOP_S = 5.0


@asynccontextmanager
async def running_backend(
    state: ServerState, loaded: Loaded, engine_id: str, on_failure: Callable[[BaseException], None]
) -> AsyncIterator[Backend]:
    """Run the model inside the block. Raises EngineError."""
    role, pool = state.args.role, loaded.pool
    identity = Identity(engine_id, loaded.compat, pool.layout.describe(), state.token)
    async with AsyncExitStack() as stack:
        stack.callback(pool.close)
        transport = ShmTransport(pool)
        sender = receiver = None
        if role == "prefill":
            sender = PrefillTransfer(transport, identity, block_size=pool.layout.block_size)
        core = _core(state, loaded, sender, on_failure)
        if sender:
            sender.start(core)
        core.start()
        stack.push_async_callback(asyncio.to_thread, core.stop, CORE_STOP_S)
        pd_comm_port = 0
        if sender:
            stack.push_async_callback(sender.close)
        if role == "decode":
            receiver = DecodeTransfer(transport, identity)
            pd_comm_port = await _listen(receiver, core, state.args)
            stack.push_async_callback(receiver.close)
        counters = [transfer.counters for transfer in (sender, receiver) if transfer]
        state.metrics.watch(core.stats, counters)
        yield Backend(core, loaded.tokenizer, loaded.max_model_len, loaded.vocab_size, sender, receiver, pd_comm_port)


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
