"""What is told of a request at its end: figures, a line in the access log, its key's consumption."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pdctl.router.figures.access_log import MAX_TEXT, AccessRecord
from pdctl.router.figures.metrics import CLIENT_LEFT

if TYPE_CHECKING:
    from pdctl.router.messages import Request
    from pdctl.router.requests.answer import Receiver
    from pdctl.router.requests.exchange import Exchange

log = logging.getLogger(__name__)

_ROUTES = {path.encode(): path for path in ("/v1/chat/completions", "/v1/completions")}


def report(exchange: "Exchange", status: int) -> None:
    """Count a request that is over, and log it."""
    router, answer = exchange.router, exchange.answer
    metrics, model = router.metrics, exchange.model
    now = router.now()
    metrics.finished(exchange.request.path, model, status, now - exchange.started)
    if exchange.attempts:
        metrics.added_latency.observe(exchange.added)
    metrics.queue.observe(exchange.queued)
    if answer.first:
        metrics.ttft[model].observe(answer.first - exchange.started)
    tokens = answer.completion_tokens
    if exchange.key is not None and tokens is not None and router.usage is not None:
        router.usage.spend(exchange.key, tokens)
    if exchange.trace is not None:
        ttft = answer.first - exchange.started if answer.first else None
        exchange.trace.end(
            status, prompt_tokens=exchange.body.tokens, completion_tokens=tokens, ttft=ttft, error=exchange.error
        )
    if router.access_log is not None:
        router.access_log.write(_record(exchange, status, model, now, tokens))
    if log.isEnabledFor(logging.DEBUG):
        engines = "no engine" if exchange.attempt is None else exchange.attempt.pair.name
        log.debug("request %s: %s: %d in %.3f s", exchange.id, engines, status, now - exchange.started)


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


def _record(exchange: "Exchange", status: int, model: str, now: float, tokens: int | None) -> AccessRecord:
    answer, attempt, body, path = exchange.answer, exchange.attempt, exchange.body, exchange.request.path
    pair, started, error = None if attempt is None else attempt.pair, exchange.started, exchange.error
    return AccessRecord(  # by position: names would take a microsecond
        datetime.now(UTC),
        exchange.id,
        exchange.client.address,
        _ROUTES.get(path) or path.decode("latin-1"),
        model,
        status,
        _outcome(exchange, status) if error else "ok",
        int((now - started) * 1e6) / 1e3,
        error and error[:MAX_TEXT],
        exchange.key.name if exchange.key is not None else "",
        pair.prefill.key if pair is not None and pair.prefill is not None else "",
        pair.decode.key if pair is not None else "",
        pair.protocol.name if pair is not None else "",
        exchange.attempts,
        exchange.resumes,
        body.stream,
        body.tokens,
        tokens,
        exchange.cached,
        int(exchange.queued * 1e6) / 1e3,
        int((answer.first - started) * 1e6) / 1e3 if answer.first else None,
        answer.size,
    )


def _outcome(exchange: "Exchange", status: int) -> str:
    if status == CLIENT_LEFT and not exchange.aborted:
        return "client_left"
    return "broken" if exchange.answer.begun else "failed"
