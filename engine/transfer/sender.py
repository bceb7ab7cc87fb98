"""Prefill's side of KV transfer: reserve on the decode engine, push what each chunk completes, say done."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from engine.errors import TransferError
from engine.scheduler.handoff import Prefilled
from engine.scheduler.request import Request
from engine.transfer.base import Identity, Peer, PrefillCore, Pushed, TransferLimits, Transport
from engine.transfer.checksum import PoolChecksum
from engine.transfer.counters import TransferCounters
from engine.transfer.link import Link, connect
from engine.transfer.outbound import Outbound
from engine.transfer.waits import deadline, fail, finish
from engine.transfer.wire import Abort, Done, Granted, Quiet, Reserve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivered:
    """What deliver() has done."""

    first_tokens: list[int]  # one per choice
    cached_tokens: int  # leading tokens that decode had already
    bytes: int
    seconds: float  # spent copying


class PrefillTransfer:
    """Delivers the KV of prompts to decode engines. Lives in the event loop; one persistent connection per peer."""

    def __init__(
        self,
        transports: Sequence[Transport],
        identity: Identity,
        *,
        block_size: int,
        limits: TransferLimits | None = None,
        checksum: PoolChecksum | None = None,
    ) -> None:
        """`transports` have been started; the best comes first. `checksum`: decode is to check what it gets."""
        self.counters = TransferCounters("sent")
        self._transports = transports
        self._checksum = checksum
        self._identity = identity
        self._block_size = block_size
        self._limits = limits or TransferLimits()
        self._outbounds: dict[str, Outbound] = {}  # by the core's request id
        self._links: dict[Peer, asyncio.Future[Link]] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._complaints: dict[Peer, str] = {}  # the last of each peer that is not connected

    def start(self, core: PrefillCore) -> None:
        """Take the core whose requests are delivered. Call it in the event loop, before the core starts."""
        self._core = core
        self._loop = asyncio.get_running_loop()

    def on_prefilled(self, event: Prefilled) -> None:
        """EngineCore's callback; called in the core's thread."""
        self._loop.call_soon_threadsafe(self._on_prefilled, event)

    @property
    def connected_decodes(self) -> list[str]:
        """The ids of the decode engines that are connected now."""
        return [link.decode for link in map(_live, self._links.values()) if link]

    def meet(self, peers: Sequence[Peer]) -> None:
        """Connect to decode engines before a request needs them. A failure is logged once; the next call retries."""
        self._complaints = {peer: text for peer, text in self._complaints.items() if peer in peers}
        for peer in peers:
            if not self._is_connecting(peer):
                self._begin(peer)

    async def deliver(self, request: Request, peer: Peer) -> Delivered:
        """Have the core compute the prompt and put its KV into blocks that the decode engine reserves for it.

        Returns when everything is delivered and done is sent. Raises TransferError, or the core's RequestError.
        Cancelling it aborts the request. In every case the core's blocks are released, and decode knows that nobody
        writes to its blocks any more, when this returns or raises.
        """
        self._core.check(request)  # before decode reserves anything, so that both modes refuse alike
        self.counters.pending += 1
        try:
            return await self._deliver(request, await self._link(peer))
        except TransferError:
            self.counters.failures += 1
            raise
        finally:
            self.counters.pending -= 1

    async def close(self) -> None:
        """Drop the connections; what is being delivered fails. Returns when nothing is being written any more."""
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _deliver(self, request: Request, link: Link) -> Delivered:
        outbound = Outbound(request.request_id)
        link.open(outbound)
        try:
            async with deadline(self._limits.deliver_s, f"the KV of a prompt to reach decode {link.decode}"):
                return await self._reserve_and_push(request, outbound, link)
        except BaseException as error:
            _give_up(outbound, link, error)
            raise
        finally:
            link.close(outbound)

    async def _reserve_and_push(self, request: Request, outbound: Outbound, link: Link) -> Delivered:
        link.send(Reserve(request.request_id, outbound.nonce, request.prompt))
        grant = await outbound.granted()
        self._check(grant, len(request.prompt), link)
        with self._computing(request, outbound):
            sent, first_tokens = await self._push_chunks(len(request.prompt), grant, outbound, link)
            checksum = await self._checksum_of(outbound, grant, link)
            outbound.check()
        link.send(Done(request.request_id, outbound.nonce, first_tokens, sent.bytes, sent.seconds, checksum))
        return Delivered(first_tokens, grant.cached_tokens, sent.bytes, sent.seconds)

    def _check(self, grant: Granted, prompt_tokens: int, link: Link) -> None:
        if len(grant.blocks) < _blocks(prompt_tokens, self._block_size) or grant.cached_tokens % self._block_size:
            raise TransferError(
                f"decode {link.decode} granted {len(grant.blocks)} blocks, {grant.cached_tokens} tokens of them cached,"
                f" for a prompt of {prompt_tokens} tokens in blocks of {self._block_size}"
            )

    @contextmanager
    def _computing(self, request: Request, outbound: Outbound) -> Iterator[None]:
        """The core computes the prompt, and holds its blocks until nobody reads them any more."""
        self._core.submit(replace(request, request_id=outbound.core_id), hold=True)
        self._outbounds[outbound.core_id] = outbound
        try:
            yield
        except BaseException:
            self._core.abort(outbound.core_id)
            raise
        finally:
            del self._outbounds[outbound.core_id]
            self._core.release(outbound.core_id)

    async def _push_chunks(
        self, prompt_tokens: int, grant: Granted, outbound: Outbound, link: Link
    ) -> tuple[Pushed, list[int]]:
        """Push every block that decode lacks as soon as it is complete; return the sum and the first tokens."""
        nbytes, seconds, pair = 0, 0.0, self.counters.pair(link.transport, link.decode)
        pushed = grant.cached_tokens // self._block_size
        while True:
            progress = await outbound.computed((pushed + 1) * self._block_size)
            last = progress.first_tokens is not None
            complete = _blocks(prompt_tokens, self._block_size) if last else progress.end // self._block_size
            if pushed < complete:
                one = await link.push(progress.block_table[pushed:complete], grant.blocks[pushed:complete])
                pair.pushed(one.bytes, one.seconds)
                nbytes, seconds, pushed = nbytes + one.bytes, seconds + one.seconds, complete
            if progress.first_tokens is not None:
                return Pushed(nbytes, seconds), progress.first_tokens

    async def _checksum_of(self, outbound: Outbound, grant: Granted, link: Link) -> int | None:
        if self._checksum is None or outbound.progress is None:
            return None
        first, end = grant.cached_tokens // self._block_size, _blocks(outbound.progress.end, self._block_size)
        blocks, part = outbound.progress.block_table[first:end], link.fit
        return await finish(
            self._loop.run_in_executor(None, self._checksum.of, blocks, part.source_offset, part.nbytes)
        )

    def _on_prefilled(self, event: Prefilled) -> None:
        if outbound := self._outbounds.get(event.request_id):  # else: aborted while the core computed it
            outbound.on_prefilled(event)

    async def _link(self, peer: Peer) -> Link:
        connected = self._links[peer] if self._is_connecting(peer) else self._begin(peer)
        # One caller's cancellation must not take the connection from the others.
        return await asyncio.shield(connected)

    def _is_connecting(self, peer: Peer) -> bool:
        """Or is connected."""
        connected = self._links.get(peer)
        return connected is not None and (not connected.done() or _live(connected) is not None)

    def _begin(self, peer: Peer) -> "asyncio.Future[Link]":
        connected = self._links[peer] = self._loop.create_future()
        task = asyncio.create_task(self._connect(peer, connected))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        return connected

    async def _connect(self, peer: Peer, connected: "asyncio.Future[Link]") -> None:
        """Make the connection and keep it until it is lost."""
        try:
            link = await connect(peer, self._identity, self._transports, self._limits)
            connected.set_result(link)
            self._complaints.pop(peer, None)
            pair = self.counters.pair(link.transport, link.decode)
            pair.connected += 1
            try:
                await link.run()
            finally:
                pair.connected -= 1
        except TransferError as error:
            self._complain(peer, str(error))
            fail(connected, error)
        finally:
            fail(connected, TransferError(f"cannot send KV to decode {peer}: this engine is stopping", status=503))
            if self._links.get(peer) is connected:
                del self._links[peer]

    def _complain(self, peer: Peer, complaint: str) -> None:
        """Log why there is no connection, once: it is tried again and again."""
        if self._complaints.get(peer) != complaint:
            self._complaints[peer] = complaint
            logger.warning("%s", complaint)


def _give_up(outbound: Outbound, link: Link, error: BaseException) -> None:
    """Tell decode that nobody writes any more; it has to be true."""
    if outbound.abort_asked:
        link.send(Quiet(outbound.request_id, outbound.nonce))
    else:
        reason = str(error) or "the request was cancelled"
        link.send(Abort(outbound.request_id, outbound.nonce, reason))


def _live(connected: "asyncio.Future[Link]") -> Link | None:
    if not connected.done() or connected.exception() is not None or connected.result().lost:
        return None
    return connected.result()


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
