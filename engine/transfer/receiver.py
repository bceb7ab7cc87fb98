"""Decode's side of KV transfer: take prefill engines' connections, and wait for a request's KV."""

import asyncio
import logging
from collections.abc import Sequence

from engine.errors import RequestError, TransferError
from engine.scheduler.request import Request
from engine.transfer.base import DecodeCore, Identity, Inlet, TransferLimits, Transport
from engine.transfer.blocks import fit
from engine.transfer.checksum import PoolChecksum
from engine.transfer.counters import TransferCounters
from engine.transfer.handshake import admit
from engine.transfer.inbound import Inbound, Prefill
from engine.transfer.negotiation import chosen
from engine.transfer.rendezvous import Rendezvous
from engine.transfer.session import Session
from engine.transfer.waits import deadline
from engine.transfer.wire import Channel, ChannelError, Done, Welcome

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class DecodeTransfer:
    """Receives the KV of prompts from prefill engines. Lives in the event loop."""

    def __init__(
        self,
        transports: Sequence[Transport],
        identity: Identity,
        checksum: PoolChecksum,
        *,
        limits: TransferLimits | None = None,
    ) -> None:
        """`transports` have been started. `checksum` is of the pool that they write to."""
        self.counters = TransferCounters("received")
        self._transports = transports
        self._identity = identity
        self._checksum = checksum
        self._limits = limits or TransferLimits()
        self._block_size = int(identity.layout["block_size"])
        self._rendezvous = Rendezvous(self._limits)
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, core: DecodeCore, host: str, port: int) -> int:
        """Listen for prefill engines on the pd-comm port (0: any free one); return the port."""
        self._core = core
        self._server = await asyncio.start_server(self._on_connection, host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def receive(self, request: Request, prefill: str) -> None:
        """Wait until that prefill engine (its id) has delivered the prompt's KV, then start decoding in the core.

        Raises TransferError naming the peer and the cause, or the RequestError that reserving blocks has failed with.
        Cancelling it gives the request up; its blocks go back to the core once prefill cannot write to them.
        """
        self._core.check(request)
        self.counters.pending += 1
        try:
            async with deadline(self._limits.deliver_s, f"the KV of {request.request_id} from prefill {prefill}"):
                await self._receive(request, prefill)
        except TransferError:
            self.counters.failures += 1
            raise
        finally:
            self.counters.pending -= 1

    async def close(self) -> None:
        """Stop listening and drop the connections; requests that wait for KV fail."""
        self._server.close()
        self._rendezvous.close()
        for _ in range(2):  # the second time without waiting for prefill engines to let go of the pool
            for task in self._connections:
                task.cancel()
            if self._connections:
                await asyncio.wait(self._connections, timeout=_CLOSE_TIMEOUT_S)

    async def _receive(self, request: Request, prefill: str) -> None:
        inbound = await self._rendezvous.claim(prefill, request.request_id)
        try:
            done = await inbound.delivered
            if inbound.prompt != request.prompt:
                raise TransferError(f"prefill {prefill} made {_difference(inbound.prompt, request.prompt)}")
            await self._verify(inbound, done)
            inbound.start(request, done.first_tokens)
        except BaseException as error:
            inbound.drop(_as_request_error(error))
            raise
        self.counters.pair(inbound.way.transport, prefill).pushed(done.bytes, done.seconds)

    async def _verify(self, inbound: Inbound, done: Done) -> None:
        """Raises TransferError where what has arrived is not what was sent, as far as a checksum came with it."""
        if done.checksum is None:
            return
        blocks, part = inbound.pushed_blocks(self._block_size), inbound.way.fit
        found = await asyncio.to_thread(self._checksum.of, blocks, part.target_offset, part.nbytes)
        if found != done.checksum:
            self.counters.mismatches += 1
            raise TransferError(
                f"the KV of {inbound.request_id} from prefill {inbound.prefill} is damaged:"
                f" its checksum is {found:08x} here and was {done.checksum:08x} there"
            )

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Channel(reader, writer, self._limits)))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, channel: Channel) -> None:
        try:
            session = await self._admit(channel)
            if session is None:
                return
            pair = self.counters.pair(session.prefill.transport, session.prefill.engine_id)
            pair.connected += 1
            try:
                await session.run()
            finally:
                pair.connected -= 1
        finally:
            channel.close()

    async def _admit(self, channel: Channel) -> Session | None:
        inlets: dict[str, Inlet] = {}
        try:
            return await self._greet(channel, inlets)
        except (ChannelError, TransferError, OSError) as error:  # a TimeoutError is an OSError
            logger.warning("KV connection from %s refused: %s", channel.address, str(error) or "no hello in time")
            return None
        finally:
            for inlet in inlets.values():  # those that are not used: nothing has been granted yet
                inlet.close()

    async def _greet(self, channel: Channel, inlets: dict[str, Inlet]) -> Session:
        """Shake hands; the inlet that is used is taken out of those that were opened for it."""
        if len(self._connections) > self._limits.connections:
            raise ChannelError(f"{self._limits.connections} prefill engines are connected")
        async with asyncio.timeout(self._limits.connect_s):
            hello = await admit(channel, self._identity, [transport.name for transport in self._transports])
        part = fit(hello.shard, self._identity.shard)
        inlets.update({each.name: each.open_inlet() for each in self._transports if each.name in hello.transports})
        offers = {name: inlet.offer for name, inlet in inlets.items()}
        channel.send(Welcome(self._identity.engine_id, offers, self._identity.shard))
        transport = await chosen(hello.engine_id, channel, inlets, self._limits.connect_s)
        prefill, inlet = Prefill(hello.engine_id, transport, part), inlets.pop(transport)
        return Session(prefill, channel, inlet, self._core, self._rendezvous, self._limits)


def _as_request_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return TransferError("the request was cancelled, or waited too long for its KV")
    return TransferError(f"decoding could not start: {error!r}", status=500)


def _difference(theirs: list[int], ours: list[int]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} tokens of a prompt that has {len(ours)} here"
    place = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"token {theirs[place]} of prompt position {place}, which has {ours[place]} here"
