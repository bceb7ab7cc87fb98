"""One request's life: engines are chosen, attempts run and fail and are followed by others, until it is answered."""

import logging
from typing import TYPE_CHECKING

from pdctl.router.figures.metrics import CLIENT_LEFT
from pdctl.router.messages import REQUEST_ID, RETRY_AFTER, SESSION, Failure, Head, Request
from pdctl.router.openai_errors import error_body
from pdctl.router.requests.answer import Answer, Receiver
from pdctl.router.requests.attempt import Attempt
from pdctl.router.requests.body import Body
from pdctl.router.requests.engine_search import EngineSearch
from pdctl.router.requests.legs import Leg
from pdctl.router.requests.resume import ResumableStream
from pdctl.router.requests.selection import Choice, EnginesFullError, Pin, SelectionError

if TYPE_CHECKING:
    from pdctl.router.access.api_keys import ApiKey
    from pdctl.router.app import Router
    from pdctl.router.figures.tracing import RequestTrace

log = logging.getLogger(__name__)

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # an engine's answers that another engine may better
_PEER_FAILED = frozenset(
    {500, 502, 504}
)  # those that may be its peer's fault: vLLM and SGLang say 500 where KV is lost


class Exchange:
    """A request. It is in flight until the client has its answer and no leg is open.

    Before a decode's body has begun, nothing is sent to the client: until then any failure becomes another attempt or
    a clean answer. From then on the decode alone decides: it knows whether it misses its prefill.
    """

    attempt: Attempt | None  # the last one
    trace: "RequestTrace | None"

    def __init__(
        self,
        router: "Router",
        client: Receiver,
        request: Request,
        body: Body,
        request_id: str,
        pin: Pin | None,
        key: "ApiKey | None",
    ) -> None:
        self.id = request_id
        self.router = router
        self.client = client
        self.request = request
        self.body = body
        self.key = key  # the client's
        self.model = router.models.label(body.model)  # in figures and queues, from beginning to end
        self.answer = Answer(client, router.metrics)
        self.answer.counts_events = key is not None and key.tokens_per_minute is not None
        self.attempt = None
        self.trace = None
        if router.tracing is not None:
            self.trace = router.tracing.begin(request.path.decode("latin-1"), request.forwarded, request_id, body.model)
        self.started = router.now()
        self.attempts = self.resumes = 0
        self.cached = 0  # prompt tokens that the engine which computes the prompt is expected to hold
        self.queued = 0.0  # seconds
        self.added = 0.0  # seconds that the router itself took until the first attempt was sent
        self.error = ""  # what went wrong, for the log
        self.fallback = ""  # why no prefill engine computed the prompt
        self.aborted = False  # on an operator's word: not tried again
        self.wait_until = 0.0  # in the queue
        session = request.headers.get(SESSION) or body.user.encode()
        self._search = EngineSearch(router.selector, body, session, pin)
        self._deadline = self.started + router.settings.request_timeout
        self._done = False  # the client has its answer, or has left
        self._paused = False  # the client reads too slowly
        self._reported = False

    @property
    def engine_id(self) -> str:
        """The request's id at its engines: one of them may still know an earlier attempt's."""
        return f"{self.id}-retry{self.attempts - 1}" if self.attempts > 1 else self.id

    def start(self) -> None:
        """Choose engines and send the request, or let it wait for some. SelectionError if there are none."""
        try:
            if self._search.pin is None and self.router.admission.has_line(self.model):
                raise EnginesFullError
            choice = self._search.choose()
        except EnginesFullError:
            self.router.in_flight[self.id] = self
            self._wait(self.router.settings.queue_timeout)
            return
        self._send(choice)
        self.router.in_flight[self.id] = self

    def cut(self, status: int, reason: str, code: str) -> None:
        """End the request now, with an error if the client has no answer yet."""
        attempt = self.attempt
        if self._done:
            if attempt is not None:
                attempt.drop()
            self.leg_closed()
            return
        if attempt is not None:
            attempt.abandon()
        self._fail(status, reason, code)

    def abort(self) -> None:
        """An operator ends the request: it is not tried again. Engines that take no such word lose their clients."""
        self.aborted = True
        if self.wait_until or self.attempt is None or not self.attempt.pair.protocol.takes_aborts:
            self.cut(499, "the request was aborted", "aborted")

    def check(self, now: float) -> None:
        """End the request if its time is over."""
        if now < self._deadline:
            return
        late = self.attempt.waits_for() if self.attempt is not None else []
        for leg in late:
            self.router.metrics.leg_failures[leg.instance.registration.role, "timeout"] += 1
        names = " and ".join(leg.instance.name for leg in late) or "the queue"
        waited = "the end of the answer" if self.answer.begun else "an answer"
        self.cut(504, f"{names}: waited {self.router.settings.request_timeout:g} s for {waited}", "timeout")

    def engine_hangs(self, key: str, reason: str) -> None:
        """Expect no answer of an engine any more, if another one can take its place."""
        legs = [leg for leg in self.attempt.waits_for() if leg.instance.key == key] if self.attempt is not None else []
        if not legs or not (self._done or self._search.can_do_without(key)):
            return
        flows = self.router.now() - self.answer.last < self.router.settings.limits.probe_timeout
        if self.answer.begun and self.answer.stream is None and flows:
            return  # it would be cut for good, though its engine still generates
        for leg in legs:
            if not leg.over:
                leg.drop()
                leg.failed(Failure("hung", reason))

    # What the client's connection reports.

    def client_left(self) -> None:
        """Let the engines give the request up."""
        if self.attempt is not None:
            self.attempt.abandon()
        if not self._done:
            self.error = self.error or "the client left"
            self._finish(CLIENT_LEFT)

    def pause(self) -> None:
        """Pass a slow client's back-pressure on to the decode."""
        self._paused = True
        if self.attempt is not None:
            self.attempt.pause()

    def resume(self) -> None:
        """Let the decode's answer come again."""
        self._paused = False
        if self.attempt is not None:
            self.attempt.resume()

    # What the queue asks and reports.

    @property
    def streaming(self) -> bool:
        """Whether the client has a part of its answer."""
        return self.answer.begun

    def try_again(self) -> bool:
        """Ask for engines once more; False to go on waiting."""
        try:
            choice = self._search.choose()
        except EnginesFullError:
            return False
        except SelectionError as error:
            if self.answer.begun:
                return False  # an engine that comes back can go on with the stream
            self.wait_until = 0.0
            self._fail(error.status, str(error), error.code)
            return True
        self._send(choice)
        return True

    def waited_too_long(self) -> None:
        """Give up waiting."""
        self.wait_until = 0.0
        self.router.metrics.queue_rejected[self.model, "timeout"] += 1
        if self.answer.begun:
            last = "" if self.attempt is None else f"{self.attempt.pair.decode.name}: "
            self._fail(503, f"{last}the stream broke, and no engine could go on with it in time", "no_instance")
        else:
            self._fail(429, "every engine is full, and none became free in time", "overloaded")

    # What the attempt reports.

    def received(self, leg: Leg, head: Head | None, body: bytes, end: bool) -> bool:
        """A piece of the answer; False if it is one that ends it too early."""
        answer = self.answer
        if head is not None:
            self._begin(leg, head)
        body, now, stream = answer.take(body), self.router.now(), answer.stream
        if end and (stream is None or stream.complete):
            self._complete(body, now)
            return True
        answer.pass_on(body, now, end=False)
        if stream is None or not (end or stream.failure() is not None):
            return True
        leg.drop()
        reason = "the stream ended early" if end else "the engine ended the stream with an error"
        leg.failed(Failure("dropped", reason))
        return False

    def refused(self, leg: Leg, head: Head) -> None:
        """An engine's answer is an error."""
        if self._done:
            self.leg_closed()
            return
        if self.answer.begun:  # by an engine before this one: the client can be told no status
            if not (head.status in _RETRIED and self._resume(leg.instance.key)):
                self._fail(502, f"{leg.instance.name} would not go on: it answered {head.status}", "resume_failed")
            return
        if head.status in _RETRIED and self._retry(leg.instance.key):
            return
        if head.status in _PEER_FAILED and self._retry_elsewhere(leg):
            return
        self.error = f"{leg.instance.name} answered {head.status}"
        log.warning("request %s: %s", self.id, self.error)
        headers = self._own_headers()
        self._finish(head.status)
        self.answer.refuse(head, leg.answer or error_body(head.status, self.error), headers)

    def failed(self, leg: Leg, failure: Failure) -> None:
        """An engine is gone."""
        if self._done:
            self.leg_closed()
        elif self.answer.begun:
            if self.answer.stream is not None and self.answer.stream.complete:  # HTTP's end alone is missing
                self._complete(b"", self.router.now())
            elif not self._resume(leg.instance.key):
                self._fail(502, f"{leg.instance.name}: {failure.reason}", "decode_failed")
        elif not self._retry(leg.instance.key):
            code = f"{leg.instance.registration.role}_failed"
            self._fail(502, f"{leg.instance.name}: {failure.reason}", code)

    def falls_back(self, reason: str) -> None:
        """The decode computes the prompt, though there was a prefill."""
        self.fallback = reason
        self.router.metrics.fallbacks[reason] += 1

    def leg_closed(self) -> None:
        """The request is over when both sides are."""
        if self._done and (self.attempt is None or not self.attempt.open):
            self.router.forget(self)
            self._let_go()

    def _send(self, choice: Choice) -> None:
        router = self.router
        if self.attempts == 0 and self.wait_until:
            self.queued = router.now() - self.started
        self.wait_until = 0.0
        self.attempts += 1
        self.fallback = ""
        self.cached = self._search.take(choice)
        if choice.skipped:
            router.metrics.pd_skipped.value += 1
        if choice.fallback is not None:
            self.falls_back(choice.fallback)
        resumption = self.answer.stream.resumption() if self.answer.stream is not None else b""
        last, self.attempt = self.attempt, Attempt(self, choice, self.engine_id, resumption)
        if last is not None:
            last.unlink()
        if self.attempts == 1:
            self.added = router.now() - self.started - self.queued

    def _wait(self, seconds: float) -> None:
        self.wait_until = self.router.now() + seconds
        if not self.router.admission.enqueue(self.model, self):
            self.wait_until = 0.0
            self.router.metrics.queue_rejected[self.model, "full"] += 1
            self._fail(429, "every engine is full, and so is the queue", "overloaded")

    def _retry(self, culprit: str) -> bool:
        """Send the request elsewhere, nothing having been sent to the client."""
        limits = self.router.settings.limits
        late = self.router.now() - self.started > limits.retry_deadline
        if self.aborted or self._search.pin is not None or self.attempts >= limits.attempts or late:
            return False
        self._search.avoid(culprit)
        try:
            choice = self._search.choose()
        except EnginesFullError:
            self.router.metrics.retries.value += 1
            self._wait(self.router.settings.queue_timeout)
            return True
        except SelectionError:
            return False  # the failure that led here is the better answer
        self.router.metrics.retries.value += 1
        self._send(choice)
        return True

    def _retry_elsewhere(self, leg: Leg) -> bool:
        """Send the request to the same engine with another peer, there being no engine in its stead."""
        pair = leg.attempt.pair
        peer = pair.decode if leg.instance is pair.prefill else pair.prefill
        return peer is not None and self._retry(peer.key)

    def _resume(self, culprit: str) -> bool:
        """Have another pair go on with a stream, after what the client has already got."""
        limits = self.router.settings.limits
        if self.answer.stream is None or self.aborted or self._search.pin is not None or self.resumes >= limits.resumes:
            return False
        self.resumes += 1
        self.router.metrics.resumes.value += 1
        self._search.avoid(culprit)
        log.warning("request %s: goes on elsewhere after %d tokens", self.id, self.answer.stream.tokens)
        self.wait_until = self.router.now() + limits.resume_wait
        if not self.try_again():
            self._search.forgive()  # it may be the first to come back
            self._wait(limits.resume_wait)
        return True

    def _begin(self, leg: Leg, head: Head) -> None:
        answer, protocol = self.answer, leg.instance.protocol
        if answer.begun:
            answer.continue_with(head)
            if self._paused:
                leg.pause()
            if answer.stream is not None and not answer.stream.begun:
                answer.stream.id = self.engine_id
            return
        resumable = protocol.resumable and self.body.stream and self.body.n == 1
        answer.begin(head, self._own_headers(), ResumableStream(self.engine_id) if resumable else None)

    def _complete(self, last: bytes, now: float) -> None:
        """The answer ends well."""
        self._done = True
        self._deadline = now + self.router.settings.limits.prefill_linger
        self.leg_closed()  # before the client's next request begins
        self.answer.pass_on(last, now, end=True)
        self._report(self.answer.status)

    def _fail(self, status: int, message: str, code: str) -> None:
        self.error = message
        if self.answer.begun:
            log.warning("request %s: broken off: %s", self.id, message)
            self.router.metrics.broken_streams.value += 1
            self._finish(self.answer.status)
            self.answer.break_off(status, message, code)
        else:
            headers = self._own_headers() + (RETRY_AFTER if status in (429, 503) else b"")
            self._finish(status)
            self.answer.error(status, message, code, headers)

    def _finish(self, status: int) -> None:
        self._done = True
        if self.attempts == 0:  # all that it did was to wait
            self.queued = self.router.now() - self.started
        if self.wait_until:
            self.wait_until = 0.0
            self.router.admission.leave(self.model, self)
        self._deadline = self.router.now() + self.router.settings.limits.prefill_linger
        self.leg_closed()
        self._report(status)

    def _report(self, status: int) -> None:
        self.router.reports.add(self, status)
        self._reported = True
        self._let_go()

    def _let_go(self) -> None:
        attempt = self.attempt
        if attempt is not None and self._reported and not attempt.open:
            self.attempt = None
            attempt.unlink()

    def _own_headers(self) -> bytes:
        """The router's headers of the answer."""
        own = b"%b: %b\r\n" % (REQUEST_ID, self.id.encode())
        if self.attempt is not None:
            own += self.attempt.pair.headers
        if self.fallback:
            own += b"x-router-fallback: %b\r\n" % self.fallback.encode()
        return own
