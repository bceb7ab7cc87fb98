"""One attempt at a request: its two legs at one pair of engines, and what each engine's trust gains or loses by it."""

import logging
from typing import TYPE_CHECKING

import msgspec

from pdctl.router.figures.prometheus import Histograms
from pdctl.router.messages import JSON, REQUEST_ID, Failure, Head
from pdctl.router.openai_errors import error_body
from pdctl.router.protocols import Bodies
from pdctl.router.requests.legs import DecodeLeg, Leg, PrefillLeg
from pdctl.router.requests.selection import Choice

if TYPE_CHECKING:
    from pdctl.router.requests.exchange import Exchange

log = logging.getLogger(__name__)

_BEGINNING = 64  # bytes of an answer, with the size of its first chunk, in which an error event begins
_MAX_SAID = 500  # bytes of an error event that are told
_FAILED = Head(502, b"content-type: %b\r\n" % JSON, None, event_stream=False, chunked=False, keep_alive=False)


class Attempt:
    """Sends a request to its engines when created. Reports to its exchange until it is dropped or abandoned."""

    __slots__ = (
        "_abandoned",
        "_decode",
        "_exchange",
        "_headers",
        "_prefill",
        "_sent",
        "begun",
        "limits",
        "pair",
        "sequential",
    )
    _prefill: PrefillLeg | None

    def __init__(self, exchange: "Exchange", choice: Choice, engine_id: str, resumption: bytes) -> None:
        self.pair = pair = choice.pair
        self.limits = exchange.router.settings.limits
        self._exchange = exchange
        self._abandoned = False  # nobody wants the answer any more
        self.begun = False  # the decode has begun to answer: it knows itself whether it misses its prefill
        body, request, tokens = exchange.body, exchange.request, exchange.body.tokens
        if pair.prefill is None:
            bodies = Bodies(None, pair.protocol.local(body, engine_id, resumption))
        else:
            bodies = pair.protocol.bodies(body, engine_id, pair, resumption)
        forwarded = request.forwarded if exchange.trace is None else exchange.trace.forwarded
        self._headers = b"%b%b: %b\r\n" % (forwarded, REQUEST_ID, engine_id.encode())
        self.sequential = bodies.decode is None  # the decode leg follows from the prefill's answer
        self._sent = exchange.router.now()
        self._decode = DecodeLeg(self, pair.decode, tokens)
        self._prefill = None
        self._begin_trial(self._decode)  # nobody else may try it while a prefill computes for it
        if pair.prefill is not None and bodies.prefill is not None:
            self._prefill = PrefillLeg(self, pair.prefill, tokens)
            self._begin_trial(self._prefill)
            exchange.router.metrics.pairs[pair.prefill.key, pair.decode.key] += 1
            self._send(self._prefill, bodies.prefill)
        if bodies.decode is not None:
            self._send(self._decode, bodies.decode)

    @property
    def open(self) -> bool:
        """Whether an engine still has to answer, or to be asked."""
        return not self._decode.over or (self._prefill is not None and not self._prefill.over)

    def pause(self) -> None:
        """Read no more of the decode's answer until `resume`."""
        self._decode.pause()

    def resume(self) -> None:
        """Read on."""
        self._decode.resume()

    def waits_for(self) -> list[Leg]:
        """The legs whose engines have not answered."""
        return [leg for leg in (self._prefill, self._decode) if leg is not None and not leg.over]

    def drop(self) -> None:
        """Close both legs' connections: their engines give the request up."""
        self._drop(self._decode)
        if self._prefill is not None:
            self._drop(self._prefill)

    def unlink(self) -> None:
        """Let go of everything, now that nothing is open: else only the garbage collector could free it."""
        del self._exchange, self._decode, self._prefill

    def abandon(self) -> None:
        """The client has left: drop what is under way, but leave no KV with a prefill that waits for its decode."""
        self._abandoned = True
        prefill = self._prefill
        if not self.sequential or prefill is None or self._decode.connected:
            self.drop()
            return
        if prefill.over:  # its answer has come: the decode was being connected
            self._release(prefill)
        elif prefill.head is None:
            self.drop()

    # What the legs report.

    def prefill_refuses(self) -> None:
        """The prefill's answer will be an error: the decode would wait in vain."""
        if not self.begun:
            self._drop(self._decode)

    def prefill_ended(self, leg: Leg) -> None:
        """The prefill's answer is complete."""
        if leg.head is not None and leg.head.status >= 300:
            self._judge(leg, leg.head)
            if self.begun:
                self._exchange.leg_closed()
            else:
                self._exchange.refused(leg, leg.head)
            return
        self._time(self._exchange.router.metrics.prefill_seconds)
        if self.sequential and not self._abandoned:
            self._follow_up(leg)
            return
        self._trust(leg)
        if self.sequential:
            self._release(leg)
        else:
            self._exchange.leg_closed()

    def prefill_failed(self, leg: Leg, failure: Failure) -> None:
        """The prefill is gone."""
        self._note(leg, failure)
        if self.begun:
            self._exchange.leg_closed()
        else:
            self._drop(self._decode)
            self._exchange.failed(leg, failure)

    def decode_received(self, leg: Leg, head: Head | None, body: bytes, end: bool) -> None:
        """A piece of the decode's answer."""
        if head is not None and (error := self.pair.protocol.stream_error) and error in body[:_BEGINNING]:
            self._stream_failed(leg, body[body.index(error) :])
            return
        self.begun = True
        exchange = self._exchange
        router = exchange.router
        if end:
            self._time(router.metrics.decode_seconds)
        if not self._abandoned:
            well = exchange.received(leg, head, body, end)
        else:
            well = True
            if end:
                exchange.leg_closed()
        # Nothing of this attempt may be used from here on: it may be over.
        if well and (leg.on_trial or (end and leg.instance.breaker.failures)):
            leg.on_trial = False
            router.registry.request_succeeded(leg.instance)

    def decode_refused(self, leg: Leg, head: Head) -> None:
        """The decode's error is complete."""
        self._release_elsewhere()
        if self._prefill is None or self._prefill.over:
            self._judge(leg, head)
        elif leg.on_trial:  # it may be the prefill's fault: the trial has no verdict
            self._exchange.router.registry.try_out(leg.instance, begins=False)
        if self._prefill is not None:
            self._drop(self._prefill)
        self._exchange.refused(leg, head)

    def decode_failed(self, leg: Leg, failure: Failure) -> None:
        """The decode is gone."""
        self._note(leg, failure)
        self._release_elsewhere()
        if self._prefill is not None:
            self._drop(self._prefill)
        self._exchange.failed(leg, failure)

    def _stream_failed(self, leg: Leg, event: bytes) -> None:
        """The decode's stream is an error, of which nothing has been sent on: as good as a status that says so."""
        leg.drop()
        said = event.partition(b"\n")[0][:_MAX_SAID].decode(errors="replace")
        message = f"{leg.instance.name} answered with an error event: {said}"
        body = error_body(_FAILED.status, message, "decode_failed")
        leg.keep(_FAILED, body, len(body))
        self.decode_refused(leg, _FAILED)

    def _begin_trial(self, leg: Leg) -> None:
        if leg.on_trial:
            self._exchange.router.registry.try_out(leg.instance, begins=True)

    def _send(self, leg: Leg, body: bytes) -> None:
        exchange, pool, headers = self._exchange, leg.instance.pool, self._headers
        if exchange.trace is not None:
            leg.trace = exchange.trace.leg(leg.instance.registration.role, leg.instance.key, exchange.attempts - 1)
            headers += leg.trace.headers
        leg.payload = pool.request(b"POST", exchange.request.target, headers, body)
        pool.send(leg)

    def _follow_up(self, prefill: Leg) -> None:
        try:
            follow_up = self.pair.protocol.follow_up(self._exchange.body, self.pair, prefill.answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.prefill_failed(prefill, Failure("invalid", f"its answer is not a prefill's: {error}"))
            return
        self._trust(prefill)
        if follow_up.fallback is not None:
            self._exchange.falls_back(follow_up.fallback)
        self._send(self._decode, follow_up.body)

    def _release(self, prefill: Leg) -> None:
        """Have a decode take, and drop, the KV that waits at the prefill."""
        self._drop(self._decode)
        body = self._releasing(prefill)
        if body is not None:
            self._decode = DecodeLeg(self, self.pair.decode, self._exchange.body.tokens)
            self._send(self._decode, body)
        self._exchange.leg_closed()

    def _release_elsewhere(self) -> None:
        """The decode has failed: have another one take the KV that may still wait for it at the prefill."""
        prefill, exchange = self._prefill, self._exchange
        if not self.sequential or self.begun or prefill is None or not prefill.over or not prefill.instance.live:
            return
        body, group = self._releasing(prefill), exchange.router.registry.group(exchange.body.model)
        partners = group.partners(prefill.instance) if group is not None else []
        others = [decode for decode in partners if decode is not self.pair.decode]
        if body is not None and others:
            decode = min(others, key=lambda decode: decode.load.requests)
            exchange.router.releases.begin(decode, exchange.request.target, self._headers, body)

    def _releasing(self, prefill: Leg) -> bytes | None:
        """The body that has a decode take and drop what waits at the prefill; None: nothing does."""
        try:
            return self.pair.protocol.release(self._exchange.body, self.pair, prefill.answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # no prefill's answer: it names no KV

    def _time(self, seconds: Histograms) -> None:
        """Note that a leg has ended; not of engines that are removed, since nobody would take that note away."""
        prefill, decode = self.pair.prefill, self.pair.decode
        if prefill is not None and not prefill.pool.retired and not decode.pool.retired:
            seconds[prefill.key, decode.key].observe(self._exchange.router.now() - self._sent)

    def _drop(self, leg: Leg) -> None:
        if leg.on_trial and not leg.over:
            self._exchange.router.registry.try_out(leg.instance, begins=False)
        leg.drop()

    def _trust(self, leg: Leg) -> None:
        if leg.on_trial or leg.instance.breaker.failures:
            self._exchange.router.registry.request_succeeded(leg.instance)

    def _judge(self, leg: Leg, head: Head) -> None:
        if head.status < 500:
            self._trust(leg)
        else:
            self._exchange.router.registry.request_failed(leg.instance, "status", f"it answered {head.status}")

    def _note(self, leg: Leg, failure: Failure) -> None:
        """Count a failure, and see to it that an engine that is gone gets no more requests."""
        router, instance = self._exchange.router, leg.instance
        router.metrics.leg_failures[instance.registration.role, failure.kind] += 1
        log.warning("request %s: %s: %s", self._exchange.id, instance.name, failure.reason)
        router.registry.request_failed(instance, failure.kind, failure.reason)
        if failure.kind == "dropped":
            router.health.probe_soon(instance)
