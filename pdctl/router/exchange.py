"""One request's life: from its pair's choice, over its legs' answers and failures, to the client's last byte."""

import logging
from typing import TYPE_CHECKING

from pdctl.router.body import Body
from pdctl.router.legs import DecodeLeg, Leg, PrefillLeg
from pdctl.router.messages import REQUEST_ID, Failure, Head, Request
from pdctl.router.openai_errors import error_event
from pdctl.router.pairs import Pair
from pdctl.router.selection import Pin, SelectionError
from pdctl.router.server import Client

if TYPE_CHECKING:
    from pdctl.router.app import Router

log = logging.getLogger(__name__)

CLIENT_LEFT = 499  # in metrics only
_ATTEMPTS = 2


class Exchange:
    """A request at its engines. It is in flight until the client has its answer and no leg is open.

    Before the decode's head has come, nothing is sent to the client: until then any failure becomes a clean answer,
    and one to connect becomes a second attempt. From then on the decode alone decides: it knows whether it misses
    its prefill.
    """

    __slots__ = (
        "_answering",
        "_attempt",
        "_body",
        "_client",
        "_decode",
        "_done",
        "_event_stream",
        "_pair",
        "_pin",
        "_prefill",
        "_request",
        "_router",
        "_started",
        "_status",
        "_tail",
        "deadline",
        "id",
    )
    _decode: DecodeLeg
    _pair: Pair
    _prefill: PrefillLeg | None

    def __init__(
        self, router: "Router", client: Client, request: Request, body: Body, request_id: str, pin: Pin | None
    ) -> None:
        self.id = request_id
        self._router = router
        self._client = client
        self._request = request
        self._body = body
        self._pin = pin
        self._attempt = 0
        self._started = router.now()
        self.deadline = self._started + router.settings.request_timeout
        self._answering = False  # the decode's head has been passed on
        self._done = False  # the client has its answer, or has left
        self._status = 0
        self._event_stream = False
        self._tail = b""  # of an event stream so far

    @property
    def engine_id(self) -> str:
        """The request's id at its engines: one of them may still know the first attempt's."""
        return f"{self.id}-retry{self._attempt}" if self._attempt else self.id

    def start(self) -> None:
        """Choose a pair and send the request. SelectionError if there is none."""
        pair = self._router.selector.choose(self._pin)
        self._router.in_flight[self.id] = self
        self._send(pair)

    def cut(self, status: int, reason: str, code: str) -> None:
        """End the request now, with an error if the client has no answer yet."""
        self._cancel_legs()
        if self._done:
            self.leg_closed()
        elif self._answering:
            self._break_off(status, reason, code)
        else:
            self._reply_error(status, reason, code)

    def expire(self) -> None:
        """End the request because its time is over."""
        late = [leg for leg in (self._prefill, self._decode) if leg is not None and leg.open]
        for leg in late:
            self._router.metrics.leg_failures[leg.instance.registration.role, "timeout"] += 1
        names = " and ".join(leg.instance.name for leg in late)
        waited = "the end of the answer" if self._answering else "an answer"
        limit = self._router.settings.request_timeout
        self.cut(504, f"{names}: waited {limit:g} s for {waited}", "timeout")

    # What the client's connection reports.

    def client_left(self) -> None:
        """Close both legs' connections: their engines give the request up."""
        self._cancel_legs()
        if not self._done:
            self._finish(CLIENT_LEFT)

    def pause(self) -> None:
        """Pass a slow client's back-pressure on to the decode."""
        if self._decode.call is not None:
            self._decode.call.pause()

    def resume(self) -> None:
        """Let the decode's answer come again."""
        if self._decode.call is not None:
            self._decode.call.resume()

    # What the legs report.

    def prefill_refuses(self) -> None:
        """The prefill's answer will be an error: the decode would wait in vain."""
        if not self._answering:
            self._decode.cancel()

    def prefill_refused(self, leg: Leg, head: Head, body: bytes) -> None:
        """The prefill's error is complete."""
        if self._answering or self._done:
            self.leg_closed()
            return
        message = f"{leg.instance.name} answered {head.status}"
        log.warning("request %s: %s", self.id, message)
        if not body:
            self._reply_error(head.status, message, "prefill_failed")
            return
        self._finish(head.status)
        self._client.start(head.status, head.headers + self._own_headers(), len(body))
        self._client.write(body, end=True)

    def prefill_failed(self, leg: Leg, failure: Failure) -> None:
        """The prefill is gone."""
        self._note(leg, failure)
        if self._answering or self._done:
            self.leg_closed()
            return
        self._decode.cancel()
        self._retry_or_reply(leg, failure)

    def decode_received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Pass a piece of the decode's answer on."""
        if head is not None:
            self._begin(head)
        if self._event_stream:
            self._tail = body[-4:] if len(body) >= 4 else (self._tail + body)[-4:]
        if end:
            self._finish(self._status)
        self._client.write(body, end=end)

    def decode_failed(self, leg: Leg, failure: Failure) -> None:
        """The decode is gone."""
        self._note(leg, failure)
        if self._prefill is not None:
            self._prefill.cancel()
        if self._answering:
            self._break_off(502, f"{leg.instance.name}: {failure.reason}", "decode_failed")
        else:
            self._retry_or_reply(leg, failure)

    def leg_closed(self) -> None:
        """The request is over when both sides are."""
        if self._done and not self._decode.open and (self._prefill is None or not self._prefill.open):
            self._router.forget(self)

    def _send(self, pair: Pair) -> None:
        router, request, tokens = self._router, self._request, self._body.tokens
        bodies = router.protocol.bodies(self._body, self.engine_id, pair)
        headers = b"%b%b: %b\r\n" % (request.forwarded, REQUEST_ID, self.engine_id.encode())
        self._pair = pair
        self._prefill = None
        self._decode = DecodeLeg(self, pair.decode, tokens)
        if pair.prefill is not None and bodies.prefill is not None:
            self._prefill = PrefillLeg(self, pair.prefill, tokens)
            self._call(self._prefill, headers, bodies.prefill)
            router.metrics.pairs[pair.prefill.key, pair.decode.key] += 1
        self._call(self._decode, headers, bodies.decode)

    def _call(self, leg: PrefillLeg | DecodeLeg, headers: bytes, body: bytes) -> None:
        head = leg.instance.request_head(b"POST", self._request.target, headers, len(body))
        leg.call = leg.instance.pool.send((head, body), leg)

    def _begin(self, head: Head) -> None:
        self._answering = True
        self._status = head.status
        self._event_stream = head.event_stream and head.length is None
        if head.status >= 400 and self._prefill is not None:
            self._prefill.cancel()
        self._client.start(head.status, head.headers + self._own_headers(), head.length)

    def _note(self, leg: Leg, failure: Failure) -> None:
        """Count a failure, and see to it that an engine that is gone gets no more requests."""
        router, instance = self._router, leg.instance
        router.metrics.leg_failures[instance.registration.role, failure.kind] += 1
        log.warning("request %s: %s: %s", self.id, instance.name, failure.reason)
        if failure.kind == "connect":
            router.registry.take_out(instance, failure.reason)
        else:
            router.health.probe_soon(instance)

    def _retry_or_reply(self, leg: Leg, failure: Failure) -> None:
        if failure.kind == "connect" and self._retry():
            return
        code = "decode_failed" if leg is self._decode else "prefill_failed"
        self._reply_error(502, f"{leg.instance.name}: {failure.reason}", code)

    def _retry(self) -> bool:
        if self._pin is not None or self._attempt + 1 >= _ATTEMPTS:
            return False
        try:
            pair = self._router.selector.choose()
        except SelectionError:
            return False  # the failure that led here is the better answer
        self._attempt += 1
        self._router.metrics.retries += 1
        self._send(pair)
        return True

    def _reply_error(self, status: int, message: str, code: str) -> None:
        self._finish(status)
        self._client.error(status, message, code=code, headers=self._own_headers())

    def _break_off(self, status: int, message: str, code: str) -> None:
        """Tell a client in the middle of its answer that there is no more; never let it look complete."""
        log.warning("request %s: broken off: %s", self.id, message)
        self._router.metrics.broken_streams += 1
        self._finish(self._status)
        between_events = self._event_stream and (not self._tail or self._tail.endswith((b"\n\n", b"\r\n\r\n")))
        self._client.break_off(error_event(status, message, code) if between_events else None)

    def _finish(self, status: int) -> None:
        now = self._router.now()
        self._done = True
        self.deadline = now + self._router.settings.limits.prefill_linger
        self._router.metrics.finished(self._request.path, status, now - self._started)
        log.debug("request %s: %s: %d in %.3f s", self.id, self._pair.name, status, now - self._started)
        self.leg_closed()

    def _cancel_legs(self) -> None:
        self._decode.cancel()
        if self._prefill is not None:
            self._prefill.cancel()

    def _own_headers(self) -> bytes:
        return b"%b: %b\r\n%b" % (REQUEST_ID, self.id.encode(), self._pair.headers)
