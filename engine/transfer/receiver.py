"""Decode's side of KV transfer: take prefill engines' connections, and wait for a request's KV."""

import asyncio
import logging

from engine.errors import RequestError, TransferError
from engine.scheduler.request import Request
from engine.transfer.base import DecodeCore, Identity, TransferCounters, TransferLimits, Transport
from engine.transfer.handshake import admit
from engine.transfer.rendezvous import Rendezvous
from engine.transfer.session import Session
from engine.transfer.waits import deadline
from engine.transfer.wire import Channel, ChannelError, Done, Welcome

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class DecodeTransfer:
    """Receives the KV of prompts from prefill engines. Lives in the event loop."""

    def __init__(self, transport: Transport, identity: Identity, *, limits: TransferLimits | None = None) -> None:
        self.counters = TransferCounters("received", transport.name)
        self._transport = transport
        self._identity = identity
        self._limits = limits or TransferLimits()
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
        try:
            async with deadline(self._limits.deliver_s, f"the KV of {request.request_id} from prefill {prefill}"):
                done = await self._receive(request, prefill)
        except TransferError:
            self.counters.failures += 1
            raise
        self.counters.bytes += done.bytes
        self.counters.seconds += done.seconds
        self.counters.pushes += 1

    async def close(self) -> None:
        """Stop listening and drop the connections; requests that wait for KV fail."""
        self._server.close()
        self._rendezvous.close()
        for _ in range(2):  # the second time without waiting for prefill engines to let go of the pool
            for task in self._connections:
                task.cancel()
            if self._connections:
                await asyncio.wait(self._connections, timeout=_CLOSE_TIMEOUT_S)

    async def _receive(self, request: Request, prefill: str) -> Done:
        inbound = await self._rendezvous.claim(prefill, request.request_id)
        try:
            done = await inbound.delivered
            if inbound.prompt != request.prompt:
                raise TransferError(f"prefill {prefill} made {_difference(inbound.prompt, request.prompt)}")
            inbound.start(request, done.first_tokens)
        except BaseException as error:
            inbound.drop(_as_request_error(error))
            raise
        return done

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Channel(reader, writer, self._limits)))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, channel: Channel) -> None:
        try:
            session = await self._admit(channel)
            if session is not None:
                await session.run()
        finally:
            channel.close()

    async def _admit(self, channel: Channel) -> Session | None:
        try:
            if len(self._connections) > self._limits.connections:
                raise ChannelError(f"{self._limits.connections} prefill engines are connected")
            async with asyncio.timeout(self._limits.connect_s):
                hello = await admit(channel, self._identity, self._transport.name)
            inlet = self._transport.open_inlet()
        except (ChannelError, OSError) as error:  # a TimeoutError is an OSError
            logger.warning("KV connection from %s refused: %s", channel.address, str(error) or "no hello in time")
            return None
        channel.send(Welcome(self._identity.engine_id, inlet.offer))
        return Session(hello.engine_id, channel, inlet, self._core, self._rendezvous, self._limits)


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
