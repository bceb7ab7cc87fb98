"""What is told of requests that are over: figures, lines in the access log, traces, their keys' consumption.

Requests are told of in batches: memory and code that one request after the other touches are cold each time, and cost
several times as much.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pdctl.router.figures.access_log import MAX_TEXT, AccessRecord
from pdctl.router.figures.metrics import CLIENT_LEFT

if TYPE_CHECKING:
    from pdctl.router.app import Router
    from pdctl.router.engines.pairs import Pair
    from pdctl.router.messages import Request
    from pdctl.router.requests.answer import Receiver
    from pdctl.router.requests.exchange import Exchange

log = logging.getLogger(__name__)

_ROUTES = {path.encode(): path for path in ("/v1/chat/completions", "/v1/completions")}
_BATCH = 32  # requests
_LARGE = 64 * 1024  # bytes of a request and its answer that are not kept for long
_DELAY = 0.1  # seconds


class Over(NamedTuple):
    """A request that is over."""

    exchange: "Exchange"
    status: int
    at: float  # the router's time
    pair: "Pair | None"  # that it was sent to last
    client: str


class Reports:
    """Requests that are over and not told of yet: 32 of them, for a tenth of a second, at most."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._over: list[Over] = []
        self._due: asyncio.Handle | None = None

    def add(self, exchange: "Exchange", status: int) -> None:
        """A request is over. What others wait for, its key's limits and its trace, does not wait for the batch."""
        attempt, now = exchange.attempt, self._router.now()
        pair = None if attempt is None else attempt.pair
        if exchange.key is not None or exchange.trace is not None:
            _settle(self._router, exchange, status)
        self._over.append(Over(exchange, status, now, pair, exchange.client.address))
        if len(self._over) == _BATCH or len(exchange.body.opened) + exchange.answer.size > _LARGE:
            self._expect(self._loop.call_soon(self.tell))
        elif self._due is None:
            self._due = self._loop.call_later(_DELAY, self.tell)

    def tell(self) -> None:
        """Tell of all that are over."""
        self._expect(None)
        over, self._over = self._over, []
        for one in over:
            _count(self._router, one)
        if over and self._router.access_log is not None:
            clock = time.time() - self._router.now()
            self._router.access_log.write([_record(one, clock) for one in over])

    def _expect(self, due: asyncio.Handle | None) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = due


def refusal(
    request: "Request", client: "Receiver", request_id: str, model: str, status: int, reason: str
) -> AccessRecord:
    """The line of a request for which no engine was chosen."""
    return AccessRecord(
        time=datetime.now(UTC),
        id=request_id,
        client=client.address,
        route=request.path.decode("latin-1"),
        model=model,
        status=status,
        outcome="refused",
        duration_ms=0.0,
        error=reason[:MAX_TEXT],
    )


def _settle(router: "Router", exchange: "Exchange", status: int) -> None:
    answer, tokens = exchange.answer, exchange.answer.completion_tokens
    if exchange.key is not None and tokens is not None and router.usage is not None:
        router.usage.spend(exchange.key, tokens)
    if exchange.trace is not None:
        ttft = answer.first - exchange.started if answer.first else None
        exchange.trace.end(
            status, prompt_tokens=exchange.body.tokens, completion_tokens=tokens, ttft=ttft, error=exchange.error
        )


def _count(router: "Router", over: Over) -> None:
    exchange, status, at, pair, _ = over
    metrics, model, seconds = router.metrics, exchange.model, at - exchange.started
    metrics.finished(exchange.request.path, model, status, seconds)
    if exchange.attempts:
        metrics.added_latency.observe(exchange.added)
    metrics.queue.observe(exchange.queued)
    if exchange.answer.first:
        metrics.ttft[model].observe(exchange.answer.first - exchange.started)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("request %s: %s: %d in %.3f s", exchange.id, pair.name if pair else "no engine", status, seconds)


def _record(over: Over, clock: float) -> AccessRecord:
    """The line of a request; `clock` is what the router's time lacks of the time of day."""
    exchange, status, at, pair, client = over
    answer, body, path = exchange.answer, exchange.body, exchange.request.path
    started, error = exchange.started, exchange.error
    return AccessRecord(  # by position: names would take a microsecond
        datetime.fromtimestamp(clock + at, UTC),
        exchange.id,
        client,
        _ROUTES.get(path) or path.decode("latin-1"),
        exchange.model,
        status,
        _outcome(exchange, status) if error else "ok",
        int((at - started) * 1e6) / 1e3,
        error and error[:MAX_TEXT],
        exchange.key.name if exchange.key is not None else "",
        pair.prefill.key if pair is not None and pair.prefill is not None else "",
        pair.decode.key if pair is not None else "",
        pair.protocol.name if pair is not None else "",
        exchange.attempts,
        exchange.resumes,
        body.stream,
        body.tokens,
        answer.completion_tokens,
        exchange.cached,
        int(exchange.queued * 1e6) / 1e3,
        int((answer.first - started) * 1e6) / 1e3 if answer.first else None,
        answer.size,
    )


def _outcome(exchange: "Exchange", status: int) -> str:
    if status == CLIENT_LEFT and not exchange.aborted:
        return "client_left"
    return "broken" if exchange.answer.begun else "failed"
