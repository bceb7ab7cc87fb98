"""The two halves of a request: what its prefill and its decode report, and the load that each puts on its engine."""

from typing import TYPE_CHECKING

from pdctl.router.instance import Instance
from pdctl.router.load import Assignment
from pdctl.router.messages import Failure, Head
from pdctl.router.upstream import Call

if TYPE_CHECKING:
    from pdctl.router.exchange import Exchange

_MAX_ERROR = 1024 * 1024  # of a prefill's error body


class Leg:
    """A call to one engine, open until its answer is complete, has failed, or is cancelled."""

    __slots__ = ("_assignment", "call", "exchange", "instance")

    def __init__(self, exchange: "Exchange", instance: Instance, tokens: int) -> None:
        self.exchange = exchange
        self.instance = instance
        self.call: Call | None = None
        self._assignment = Assignment(instance.load, tokens)

    @property
    def open(self) -> bool:
        """Whether an answer, or its rest, is still to come."""
        return self.call is not None

    def close(self) -> None:
        """The engine is done with the request."""
        self.call = None
        self._assignment.release()

    def cancel(self) -> None:
        """Close its connection, so that the engine gives the request up."""
        if self.call is not None:
            self.call.cancel()
            self.close()


class PrefillLeg(Leg):
    """Its answer matters only if it is an error."""

    __slots__ = ("_body", "_error")

    def __init__(self, exchange: "Exchange", instance: Instance, tokens: int) -> None:
        super().__init__(exchange, instance, tokens)
        self._error: Head | None = None
        self._body = b""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Drain a success; keep an error for the client."""
        if head is not None and not 200 <= head.status < 300:
            self._error = head
            self.exchange.prefill_refuses()
        if self._error is not None and len(self._body) < _MAX_ERROR:
            self._body += body
        if not end:
            return
        self.close()
        if self._error is None:
            self.exchange.leg_closed()
        else:
            self.exchange.prefill_refused(self, self._error, self._body)

    def failed(self, failure: Failure) -> None:
        """The engine is gone."""
        self.close()
        self.exchange.prefill_failed(self, failure)


class DecodeLeg(Leg):
    """Its answer is the client's."""

    __slots__ = ()

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Pass one read on as one write."""
        if end:
            self.close()
        self.exchange.decode_received(head, body, end)

    def failed(self, failure: Failure) -> None:
        """The engine is gone."""
        self.close()
        self.exchange.decode_failed(self, failure)
