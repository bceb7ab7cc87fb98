"""Prefill's end of one queue pair: what waits to be posted, and what has been and is not there yet."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from pyverbs.cq import WC, cqe_status_to_str
from pyverbs.pyverbs_error import PyverbsError

from engine.transfer.blocks import Copy
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.queue_pairs import QueuePair
from engine.transfer.transports.rdma.stripes import Signaled, Stripe

DEPTH = 256  # messages posted at a time
_SIGNAL_EVERY = 16  # of them make a completion; and the last of a stripe
_AT_ONCE = 8  # posted before the event loop has a turn: software NICs carry data while they are posted to


class Lane:
    """Carries stripes in order. Once failed, it carries nothing more, and holds what it has not carried."""

    def __init__(self, label: str, pair: QueuePair, address: int, rkey: int) -> None:
        self.label = label
        self.pending = 0  # bytes
        self.failure: str | None = None
        self._open = True
        self.stripes: dict[int, Stripe] = {}  # not finished, by number
        self.progress = time.monotonic()  # when anything last came of what was sent
        self._pair, self._address, self._rkey = pair, address, rkey
        self._waiting: deque[tuple[Copy, Stripe | None]] = deque()
        self._signaled: deque[Signaled] = deque()
        self._posted = self._done = 0
        self._will_post = False
        self._unsignaled_bytes = 0

    def watch(self, on_finished: Callable[[Stripe], None], on_failed: Callable[["Lane"], None]) -> None:
        """Tell of each stripe that is there and sent, and once of a failure, later than the call that met it."""
        self._on_finished, self._on_failed = on_finished, on_failed
        if self.failure is None:
            self._pair.completions.watch(self._completed, self.fail)

    def send(self, stripe: Stripe) -> None:
        """Carry a stripe, after those before."""
        if not self.stripes:
            self.progress = time.monotonic()
        self.stripes[stripe.number] = stripe
        self.pending += sum(message.nbytes for message in stripe.messages)
        last = len(stripe.messages) - 1
        self._waiting.extend((message, stripe if n == last else None) for n, message in enumerate(stripe.messages))
        self._post()

    def acknowledged(self, number: int) -> None:
        """The other side has all of that stripe."""
        stripe = self.stripes.get(number)
        if stripe is not None:
            stripe.acknowledged = True
            self._finish(stripe)

    def fail(self, reason: str) -> None:
        """Send nothing any more, what is under way included."""
        if self.failure is not None:
            return
        self.failure = reason
        self.close()
        asyncio.get_running_loop().call_soon(self._on_failed, self)

    def close(self) -> None:
        """Let go of the queue pair."""
        self._open = False
        self._pair.close()

    def _post(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                if not self._can_post():
                    return
                self._post_one(*self._waiting.popleft())
        except PyverbsError as error:
            self.fail(str(error))
        if self._can_post() and not self._will_post:
            self._will_post = True
            asyncio.get_running_loop().call_soon(self._post_more)

    def _post_more(self) -> None:
        self._will_post = False
        self._post()

    def _can_post(self) -> bool:
        return bool(self._waiting) and self._open and self._posted - self._done < DEPTH

    def _post_one(self, message: Copy, ends: Stripe | None) -> None:
        self._posted += 1
        self._unsignaled_bytes += message.nbytes
        signaled = ends is not None or self._posted % _SIGNAL_EVERY == 0
        if signaled:
            self._signaled.append(Signaled(self._posted, self._unsignaled_bytes, ends))
            self._unsignaled_bytes = 0
        self._pair.post_write(
            message.source,
            self._address + message.target,
            message.nbytes,
            self._rkey,
            immediate=None if ends is None else ends.number,
            wr_id=self._posted,
            signaled=signaled,
        )

    def _completed(self, completions: list[WC]) -> None:
        for completion in completions:
            if completion.status != enums.IBV_WC_SUCCESS:  # the first says why, those that follow are flushed
                return self.fail(cqe_status_to_str(completion.status))
            self._done = completion.wr_id
        self.progress = time.monotonic()
        while self._signaled and self._signaled[0].place <= self._done:
            _, nbytes, stripe = self._signaled.popleft()
            self.pending -= nbytes
            if stripe is not None:
                stripe.sent = True
                self._finish(stripe)
        return self._post()

    def _finish(self, stripe: Stripe) -> None:
        self.progress = time.monotonic()
        if stripe.sent and stripe.acknowledged:
            del self.stripes[stripe.number]
            self._on_finished(stripe)
