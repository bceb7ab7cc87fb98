"""A decode engine's connection to one prefill engine."""

import asyncio
import logging

from engine.errors import TransferError
from engine.transfer.base import DecodeCore, Inlet, TransferLimits
from engine.transfer.inbound import Inbound, Prefill
from engine.transfer.rendezvous import Rendezvous
from engine.transfer.wire import Abort, Channel, ChannelError, Done, Message, Quiet, Refused, Reserve

logger = logging.getLogger(__name__)

_REMINDER_S = 30.0


class Session:
    """A live control connection, and the reservations that its peer may be writing to."""

    def __init__(
        self,
        prefill: Prefill,
        channel: Channel,
        inlet: Inlet,
        core: DecodeCore,
        rendezvous: Rendezvous,
        limits: TransferLimits,
    ) -> None:
        self.prefill = prefill
        self._prefill = prefill.engine_id
        self._channel = channel
        self._inlet = inlet
        self._core = core
        self._rendezvous = rendezvous
        self._limits = limits
        self._writable: dict[int, Inbound] = {}  # by nonce; in here until the writer has let go

    async def run(self) -> None:
        """Serve the connection until it is lost; returns when its peer cannot write to our blocks any more."""
        loss = TransferError("this engine is stopping", status=503)
        self._rendezvous.join(self._prefill)
        try:
            while True:
                self._handle(await self._channel.receive())
        except ChannelError as error:
            logger.warning("connection to prefill %s is lost: %s", self._prefill, error)
            loss = TransferError(f"prefill {self._prefill} is lost: {error}")
        except Exception as error:
            logger.exception("the connection to prefill %s has failed here", self._prefill)
            loss = TransferError(f"the connection to prefill {self._prefill} has failed here: {error!r}", status=500)
        finally:
            self._channel.close()
            self._lose(loss)
            try:
                await self._drain()
            finally:
                self._inlet.close()

    def _handle(self, message: Message) -> None:
        match message:
            case Reserve():
                self._on_reserve(message)
            case Done(request_id, nonce):
                if inbound := self._current(request_id, nonce):
                    inbound.on_done(message)
            case Abort(request_id, nonce, reason):
                if inbound := self._current(request_id, nonce):
                    inbound.writer_left()
                    inbound.drop(TransferError(f"prefill {self._prefill} aborted: {reason}"))
            case Quiet(_, nonce):
                if inbound := self._writable.get(nonce):
                    inbound.writer_left()
            case _:
                raise ChannelError(f"it sent {type(message).__name__.lower()}, which is not for decode")

    def _on_reserve(self, wanted: Reserve) -> None:
        if wanted.nonce in self._writable:
            raise ChannelError(f"it used nonce {wanted.nonce} twice")
        inbound = Inbound(wanted, self.prefill, self._core, self._channel.send, self._on_writer_left)
        try:
            if len(self._writable) >= self._limits.transfers:
                raise TransferError(f"{self._limits.transfers} reservations are open", status=503)
            self._rendezvous.bring(inbound)
        except TransferError as error:
            self._channel.send(Refused(wanted.request_id, wanted.nonce, str(error), error.status, error.code))
            return
        self._writable[wanted.nonce] = inbound
        inbound.reserve(self._limits.reserve_s)

    def _current(self, request_id: str, nonce: int) -> Inbound | None:
        """Find what the message is about. A stale nonce ends whatever the request has open: it is never guessed."""
        inbound = self._writable.get(nonce)
        if inbound is not None and inbound.request_id == request_id:
            return inbound
        for other in [other for other in self._writable.values() if other.request_id == request_id]:
            logger.error("prefill %s used stale nonce %d for request %s", self._prefill, nonce, request_id)
            other.drop(TransferError(f"prefill {self._prefill} used a stale nonce for request {request_id}"))
        return None

    def _on_writer_left(self, inbound: Inbound) -> None:
        del self._writable[inbound.nonce]

    def _lose(self, loss: TransferError) -> None:
        for inbound in list(self._writable.values()):
            inbound.drop(loss)
        self._rendezvous.lose(self._prefill, loss)

    async def _drain(self) -> None:
        """Free the blocks that the peer might have been writing, once it cannot."""
        while self._writable:
            try:
                async with asyncio.timeout(_REMINDER_S):
                    await self._inlet.drained()
            except TimeoutError:
                logger.warning(
                    "%d requests' blocks stay in use: prefill %s is lost, but its process can still write to them",
                    len(self._writable),
                    self._prefill,
                )
                continue
            for inbound in list(self._writable.values()):
                inbound.writer_left()
