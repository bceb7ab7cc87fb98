"""The two halves of a request: what its prefill and its decode report, and the load that each puts on its engine."""

from typing import TYPE_CHECKING

from pdctl.router.engines.breaker import State
from pdctl.router.engines.instance import Instance
from pdctl.router.messages import Failure, Head
from pdctl.router.upstream.dechunker import Dechunker
from pdctl.router.upstream.pool import Call

if TYPE_CHECKING:
    from pdctl.router.figures.tracing import LegTrace
    from pdctl.router.requests.attempt import Attempt

_MAX_ERROR = 1024 * 1024  # of an engine's error body


class Leg(Call):
    """A call to one engine, which is the engine's load from now until it is closed."""

    __slots__ = (
        "_answer",
        "_closed",
        "_dechunker",
        "_kept",
        "_tokens",
        "attempt",
        "head",
        "instance",
        "on_trial",
        "trace",
    )

    def __init__(self, attempt: "Attempt", instance: Instance, tokens: int) -> None:
        super().__init__(instance.pool, b"")
        self.attempt = attempt
        self.instance = instance
        self.head: Head | None = None  # of an answer that is kept
        self.on_trial = instance.breaker.state is State.HALF_OPEN  # its fate decides over the engine's breaker
        self._closed = False
        self._tokens = tokens
        self._answer: list[bytes] = []
        self._kept = 0
        self._dechunker: Dechunker | None = None
        self.trace: LegTrace | None = None
        instance.load.add(tokens)

    def close(self, error: str = "") -> None:
        """The engine is done with the request; only the first call counts."""
        if not self._closed:
            self._closed = True
            self.instance.load.remove(self._tokens)
            if self.trace is not None:
                self.trace.end(error=error)

    def drop(self) -> None:
        """Close its connection, so that the engine gives the request up."""
        if not self.over:
            self.cancel()
        self.close("dropped")

    def keep(self, head: Head | None, body: bytes, limit: int) -> bool:
        """Collect an answer; False if it grows too large."""
        if head is not None:
            self.head = head
            self._dechunker = Dechunker() if head.chunked else None
        self._kept += len(body)
        if self._kept > limit:
            return False
        self._answer.append(body if self._dechunker is None else self._dechunker.feed(body))
        return True

    @property
    def answer(self) -> bytes:
        """The body that has been kept."""
        return b"".join(self._answer)


class PrefillLeg(Leg):
    """Its answer matters if it is an error, or if the decode needs it."""

    __slots__ = ()

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Drain a success that nobody needs; keep what matters."""
        attempt = self.attempt
        if self.trace is not None and head is not None:
            self.trace.status = head.status
        if head is not None and not 200 <= head.status < 300:
            self.keep(head, body, _MAX_ERROR)
            attempt.prefill_refuses()
        elif self.head is not None or attempt.sequential:
            limit = attempt.limits.prefill_answer_bytes if attempt.sequential else _MAX_ERROR
            if not self.keep(head, body, limit):
                self.drop()
                attempt.prefill_failed(self, Failure("invalid", f"its answer is larger than {limit} bytes"))
                return
        if end:
            self.close()
            attempt.prefill_ended(self)

    def failed(self, failure: Failure) -> None:
        """The engine is gone."""
        self.close(failure.reason)
        self.attempt.prefill_failed(self, failure)


class DecodeLeg(Leg):
    """Its answer is the client's.

    A head alone waits here for the body to begin: FastDeploy sends that of a stream at once, before it knows whether
    its prefill will come.
    """

    __slots__ = ("_early",)

    def __init__(self, attempt: "Attempt", instance: Instance, tokens: int) -> None:
        super().__init__(attempt, instance, tokens)
        self._early: Head | None = None

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Pass one read on as one write; keep an error, which may be followed by another attempt."""
        if self.trace is not None and head is not None:
            self.trace.status = head.status
        if head is not None and not body and not end:
            self._early = head
            return
        if self._early is not None:
            head, self._early = self._early, None
        if end:
            self.close()
        if self.head is None and (head is None or head.status < 400):
            self.attempt.decode_received(self, head, body, end)
            return
        if not self.keep(head, body, _MAX_ERROR):
            self.drop()
            self.attempt.decode_failed(self, Failure("invalid", f"its error is larger than {_MAX_ERROR} bytes"))
        elif end and self.head is not None:
            self.attempt.decode_refused(self, self.head)

    def failed(self, failure: Failure) -> None:
        """The engine is gone."""
        self.close(failure.reason)
        self.attempt.decode_failed(self, failure)
