"""A prefill engine's connection to one decode engine."""

import asyncio
import logging
from collections.abc import Sequence

from engine.errors import TransferError
from engine.transfer.base import Identity, Peer, Pushed, Target, TransferLimits, Transport
from engine.transfer.blocks import Fit, fit
from engine.transfer.handshake import introduce
from engine.transfer.negotiation import Way, choose
from engine.transfer.outbound import Outbound
from engine.transfer.waits import deadline
from engine.transfer.wire import Abort, Channel, ChannelError, Granted, Message, Quiet, Refused, Welcome

logger = logging.getLogger(__name__)


class Link:
    """A live control connection, the memory behind it, and the transfers that use them."""

    def __init__(self, peer: Peer, welcome: Welcome, channel: Channel, fit: Fit, way: Way) -> None:
        self.decode = welcome.engine_id
        self.transport = way.transport
        self._peer = peer
        self._channel = channel
        self._writer = way.writer
        self.fit = fit
        self._num_blocks = welcome.shard.num_blocks
        self._outbounds: dict[int, Outbound] = {}  # by nonce
        self._loss: TransferError | None = None

    async def run(self) -> None:
        """Serve the connection until it is lost; returns when nothing is being written any more."""
        loss = TransferError("this engine is stopping", status=503)
        try:
            while True:
                self._handle(await self._channel.receive())
        except ChannelError as error:
            logger.warning("connection to decode %s (%s) is lost: %s", self.decode, self._peer, error)
            loss = TransferError(f"decode {self.decode} is lost: {error}")
        except Exception as error:
            logger.exception("the connection to decode %s (%s) has failed here", self.decode, self._peer)
            loss = TransferError(f"the connection to decode {self.decode} has failed here: {error!r}", status=500)
        finally:
            self._lose(loss)
            self._channel.close()
            await self._writer.close()

    @property
    def lost(self) -> bool:
        """Whether the connection is over; deliveries need a new one."""
        return self._loss is not None

    def open(self, outbound: Outbound) -> None:
        """Let a transfer hear what decode says about it. Raises TransferError when the connection is lost."""
        if self._loss is not None:
            raise self._loss
        self._outbounds[outbound.nonce] = outbound

    def close(self, outbound: Outbound) -> None:
        """Forget a transfer: nothing is being written for it any more."""
        del self._outbounds[outbound.nonce]

    def send(self, message: Message) -> None:
        """Tell decode."""
        self._channel.send(message)

    async def push(self, source: list[int], target: list[int]) -> Pushed:
        """Write blocks of ours into decode's. Raises TransferError when the connection is lost."""
        if self._loss is not None:
            raise self._loss
        try:
            return await self._writer.push(source, target)
        finally:
            if self._writer.failed:
                # Nothing may be said of the blocks: decode frees them when it has lost us and drained its inlet.
                self._channel.close()
                self._lose(TransferError(f"the KV transport {self.transport} to decode {self.decode} has failed"))

    def _handle(self, message: Message) -> None:
        match message:
            case Granted():
                self._on_granted(message)
            case Refused(_, nonce, reason, status, code):
                if outbound := self._outbounds.get(nonce):
                    outbound.fail(TransferError(f"decode {self.decode} refused: {reason}", status=status, code=code))
            case Abort(request_id, nonce, reason):
                if outbound := self._outbounds.get(nonce):
                    outbound.on_abort(TransferError(f"decode {self.decode} aborted: {reason}"))
                else:
                    self.send(Quiet(request_id, nonce))
            case _:
                raise ChannelError(f"it sent {type(message).__name__.lower()}, which is not for prefill")

    def _on_granted(self, grant: Granted) -> None:
        outbound = self._outbounds.get(grant.nonce)
        if outbound is None:
            return  # given up meanwhile: our abort is on its way
        if len(set(grant.blocks)) != len(grant.blocks) or not all(
            0 <= block < self._num_blocks for block in grant.blocks
        ):
            raise ChannelError("it granted blocks that its pool does not have, or one twice")
        outbound.on_granted(grant)

    def _lose(self, loss: TransferError) -> None:
        self._loss = loss
        for outbound in self._outbounds.values():
            outbound.fail(loss)


async def connect(peer: Peer, identity: Identity, transports: Sequence[Transport], limits: TransferLimits) -> Link:
    """Connect to a decode engine: handshake, then its memory. Raises TransferError naming the peer and the reason."""
    try:
        async with deadline(limits.connect_s, "the connection and its handshake"):
            return await _connect(peer, identity, transports, limits)
    except Exception as error:
        if not isinstance(error, TransferError | ChannelError | OSError):
            logger.exception("connecting to decode %s has failed here", peer)
        status = error.status if isinstance(error, TransferError) else 502
        raise TransferError(f"cannot send KV to decode {peer}: {error}", status=status) from None


async def _connect(peer: Peer, identity: Identity, transports: Sequence[Transport], limits: TransferLimits) -> Link:
    reader, writer = await asyncio.open_connection(peer.host, peer.port)
    channel = Channel(reader, writer, limits)
    try:
        welcome = await introduce(channel, identity, [transport.name for transport in transports])
        target = Target(peer.host, welcome.shard.num_blocks, fit(identity.shard, welcome.shard))
        each = limits.connect_s / (1 + len(transports))
        way = await choose(welcome.engine_id, transports, welcome.offers, target, channel, each)
        return Link(peer, welcome, channel, target.fit, way)
    except BaseException:
        channel.close()
        raise
