"""Prefill's side: pushes over the lanes to one decode engine."""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engine.errors import TransferError
from engine.transfer.base import Computed, Pushed
from engine.transfer.blocks import Copy, Fit, copies
from engine.transfer.transports.rdma.lanes import Lane
from engine.transfer.transports.rdma.memory import Bounce, Span
from engine.transfer.transports.rdma.stripes import Delivery, Stripe, messages_of, share_out
from engine.transfer.transports.rdma.wire import ACK, CLOSE, CLOSED, FRAME, SPANS, Spans, send
from engine.transfer.waits import fail, finish

logger = logging.getLogger(__name__)

_STALL_S = 30.0  # a lane with something to carry on which nothing moves
_CLOSE_S = 5.0  # decode's answer that a failed lane is closed on its side too
_CANCELLED_S = 2.0  # what a cancelled push has left to end by itself
_CHECK_S = 1.0
_PROBE_S = 1.0  # a NIC's own timeout may be longer than the time that there is to connect


class RdmaWriter:
    """Posts pushes in order, on all lanes at once; a push may be posted while those before are still on their way.

    What a failed lane has not carried goes over the others, but only when decode's end is closed too: until then, a
    late packet could still be written. Without any lane left the writer has failed.
    """

    def __init__(
        self,
        lanes: list[Lane],
        reader: asyncio.StreamReader,
        stream: asyncio.StreamWriter,
        fit: Fit,
        *,
        bounce: Bounce | None,
        tells_spans: bool,
    ) -> None:
        self._lanes = lanes
        self._reader, self._stream = reader, stream
        self._fit = fit
        self._bounce, self._tells_spans = bounce, tells_spans
        self._failure: str | None = None
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()  # in which pushes are posted: first come, first served
        self._deliveries: set[Delivery] = set()
        self._closing: dict[Lane, asyncio.TimerHandle] = {}  # failed; decode has not closed them yet
        self._last_end = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-rdma")
        for lane in lanes:
            lane.watch(self._finished, self._lane_failed)
        self._loop = asyncio.get_running_loop()
        self._check = self._loop.call_later(_CHECK_S, self._check_progress)
        self._listening = asyncio.create_task(self._listen())

    async def probe(self) -> None:
        """Send nothing over each lane, so that one that does not reach decode is left out. TransferError: none does."""
        delivery = self._start([(lane, [Copy(0, 0, 0)]) for lane in self._usable()])
        patience = self._loop.call_later(_PROBE_S, self._leave_out_silent)
        try:
            await self._arrival(delivery)
        finally:
            patience.cancel()

    @property
    def failed(self) -> bool:
        """Whether it is of no use any more."""
        return self._failure is not None

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        """Copy block source[i] to the peer's block target[i]; returns, or raises, when nothing can be written."""
        async with self._turn:
            runs = copies(source, target, self._fit)
            if after is not None:
                await finish(self._loop.run_in_executor(self._thread, after.synchronize))
            if self._bounce is not None:
                spans = [Span(run.source, run.nbytes) for run in runs]
                await finish(self._loop.run_in_executor(self._thread, self._bounce.fetch, spans))
            lanes = self._usable()
            delivery = self._start(share_out(messages_of(runs, len(lanes)), lanes))
        return Pushed(len(source) * self._fit.nbytes, await self._arrival(delivery))

    async def close(self) -> None:
        """Wait for the pushes in flight, then close the connection: decode takes that for the writer's end."""
        try:
            async with self._turn:
                if self._failure is None and self._deliveries:
                    await asyncio.wait([delivery.done for delivery in self._deliveries])
        finally:
            self._fail("its connection is closed")
            self._thread.shutdown()
            self._listening.cancel()
            await asyncio.wait({self._listening})

    def _usable(self) -> list[Lane]:
        lanes = [lane for lane in self._lanes if lane.failure is None]
        if self._failure is not None:
            raise TransferError(self._failure)
        if not lanes:
            raise TransferError(self._all_failed())
        first = next(self._numbers) % len(lanes)  # small pushes must not all take the same one
        return lanes[first:] + lanes[:first]

    def _leave_out_silent(self) -> None:
        lanes = [lane for lane in self._lanes if lane.failure is None]
        if all(lane.stripes for lane in lanes):
            return  # it is not one of them: the caller's deadline counts
        for lane in lanes:
            if lane.stripes:
                lane.fail(f"no answer within {_PROBE_S:g} s, when others had answered")

    def _start(self, shares: list[tuple[Lane, list[Copy]]]) -> Delivery:
        delivery = Delivery()
        delivery.stripes = len(shares)
        if not shares:
            delivery.done.set_result(0.0)
            return delivery
        self._deliveries.add(delivery)
        for lane, messages in shares:
            self._send(lane, delivery, messages)
        return delivery

    def _send(self, lane: Lane, delivery: Delivery, messages: list[Copy]) -> None:
        stripe = Stripe(self._number(), delivery, messages)
        if self._tells_spans:
            self._stream.write(FRAME.pack(SPANS, self._lanes.index(lane), stripe.number))
            send(self._stream, Spans([Span(message.target, message.nbytes) for message in messages]))
        lane.send(stripe)

    def _number(self) -> int:
        return next(self._numbers) & 0xFFFFFFFF

    async def _arrival(self, delivery: Delivery) -> float:
        try:
            return await asyncio.shield(delivery.done)
        except asyncio.CancelledError:
            patience = self._loop.call_later(_CANCELLED_S, self._fail, "a push that was cancelled did not end")
            try:
                with suppress(TransferError):  # the cancellation is what the caller knows of
                    await finish(delivery.done)
            finally:
                patience.cancel()
            raise

    def _finished(self, stripe: Stripe) -> None:
        delivery = stripe.delivery
        delivery.stripes -= 1
        if delivery.stripes or delivery.done.done():
            return
        now = time.perf_counter()
        self._deliveries.discard(delivery)
        delivery.done.set_result(now - max(delivery.started, self._last_end))  # no second is counted twice
        self._last_end = now

    async def _listen(self) -> None:
        try:
            while True:
                what, place, number = FRAME.unpack(await self._reader.readexactly(FRAME.size))
                if what not in (ACK, CLOSED) or place >= len(self._lanes):
                    return self._fail("the decode engine sent nonsense on its data connection")
                if what == ACK:
                    self._lanes[place].acknowledged(number)
                else:
                    self._closed_there(self._lanes[place])
        except (EOFError, OSError):
            self._fail("the decode engine closed its data connection")

    def _lane_failed(self, lane: Lane) -> None:
        if self._failure is not None:
            return
        logger.warning("RDMA: %s failed: %s", lane.label, lane.failure)
        silent = f"the decode engine did not close {lane.label} within {_CLOSE_S:g} s"
        self._closing[lane] = self._loop.call_later(_CLOSE_S, self._fail, silent)
        self._stream.write(FRAME.pack(CLOSE, self._lanes.index(lane), 0))

    def _closed_there(self, lane: Lane) -> None:
        timer = self._closing.pop(lane, None)
        if timer is None:
            lane.fail("the decode engine's end failed")
            return
        timer.cancel()
        usable = [other for other in self._lanes if other.failure is None]
        if usable:
            self._send_again(lane, usable)
        elif not self._closing:
            self._fail(self._all_failed())

    def _send_again(self, failed: Lane, usable: list[Lane]) -> None:
        """Whole stripes: what has been acknowledged of one by the NIC is known to be seen only with its number."""
        stripes, failed.stripes = list(failed.stripes.values()), {}
        for stripe in stripes:
            if stripe.acknowledged:  # and the NIC, which has gone, needs the source no more
                self._finished(stripe)
                continue
            shares = share_out(stripe.messages, usable)
            stripe.delivery.stripes += len(shares) - 1
            for lane, messages in shares:
                self._send(lane, stripe.delivery, messages)

    def _check_progress(self) -> None:
        self._check = self._loop.call_later(_CHECK_S, self._check_progress)
        for lane in self._lanes:
            if lane.failure is None and lane.stripes and time.monotonic() - lane.progress > _STALL_S:
                lane.fail(f"nothing moved for {_STALL_S:g} s")

    def _all_failed(self) -> str:
        return "no NIC is left: " + "; ".join(f"{lane.label}: {lane.failure}" for lane in self._lanes)

    def _fail(self, reason: str) -> None:
        """Let nothing be written any more. The first reason counts."""
        if self._failure is not None:
            return
        self._failure = reason
        for lane in self._lanes:
            lane.close()
        for timer in (self._check, *self._closing.values()):
            timer.cancel()
        self._stream.close()
        for delivery in self._deliveries:
            fail(delivery.done, TransferError(reason))
        self._deliveries.clear()
