"""Takes in a completion request: checks it, names it, and starts its exchange."""

import random
import re
from math import ceil, isinf
from typing import TYPE_CHECKING

from pdctl.router.access.api_keys import ApiKey
from pdctl.router.access.tokens import same_token
from pdctl.router.client.server import Client
from pdctl.router.messages import DECODE_URL, PREFILL_URL, REQUEST_ID, RETRY_AFTER, TOKEN_HEADER, Request
from pdctl.router.requests.body import Body, BodyError, parse_body
from pdctl.router.requests.exchange import Exchange
from pdctl.router.requests.report import refusal
from pdctl.router.requests.selection import Pin, SelectionError

if TYPE_CHECKING:
    from pdctl.router.app import Router

WWW_AUTHENTICATE = b"www-authenticate: Bearer\r\n"
_CHAT = b"/v1/chat/completions"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class IntakeError(Exception):
    """A request is refused with this status."""

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after  # seconds


def accept(router: "Router", request: Request, client: Client) -> Exchange | None:
    """Start a request, or answer why not."""
    request_id = model = ""
    exchange = None
    try:
        key = authenticate(router, request)
        _check_room(router)
        body = parse_body(request.body, chat=request.path == _CHAT)
        model = router.models.label(body.model)
        request_id = _request_id(request, body)
        _check_unique(router, request_id)
        pin = _pin(router, request)
        if key is not None:
            _check_limits(router, key, body.tokens)
        exchange = Exchange(router, client, request, body, request_id, pin, key)
        exchange.start()
    except BodyError as error:
        _refuse(router, request, client, request_id, model, IntakeError(400, str(error), "invalid_body"))
    except (IntakeError, SelectionError) as error:
        if exchange is not None and exchange.trace is not None:
            exchange.trace.end(error.status, error=str(error) if error.status >= 500 else "")
        _refuse(router, request, client, request_id, model, error)
    else:
        return exchange
    return None


def authenticate(router: "Router", request: Request) -> ApiKey | None:
    """The API key of a request; None if it needs none. IntakeError if it has none that is known."""
    keys = router.settings.api_keys
    if keys is None or (router.settings.token is not None and _has_token(router, request)):
        return None
    key = keys.find(request.headers.get(b"authorization", b""))
    if key is None:
        raise IntakeError(401, "an API key is needed: Authorization: Bearer KEY", "invalid_api_key")
    return key


def _check_limits(router: "Router", key: ApiKey, tokens: int) -> None:
    wait = router.usage.admit(key, tokens) if router.usage is not None else 0.0
    if wait == 0:
        return
    router.metrics.rate_limited[key.name] += 1
    if isinf(wait):
        raise IntakeError(400, "the prompt alone is over the API key's limit of tokens a minute", "rate_limit_exceeded")
    raise IntakeError(429, "the API key's limit is reached", "rate_limit_exceeded", retry_after=ceil(wait))


def _check_room(router: "Router") -> None:
    if router.stopping:
        raise IntakeError(503, "the router is stopping", "stopping")
    limit = router.settings.limits.in_flight
    if len(router.in_flight) >= limit:
        raise IntakeError(503, f"the router is serving {limit} requests, which is its limit", "overloaded")


def _request_id(request: Request, body: Body) -> str:
    given = request.headers.get(REQUEST_ID)
    request_id = given.decode("latin-1") if given else body.request_id
    if request_id is None:
        return f"{random.getrandbits(128):032x}"
    if not _REQUEST_ID.fullmatch(request_id):
        raise IntakeError(400, "a request id has 1 to 128 printable ASCII characters", "invalid_request_id")
    return request_id


def _check_unique(router: "Router", request_id: str) -> None:
    if request_id in router.in_flight:
        raise IntakeError(409, f"request id {request_id} is in flight already", "duplicate_request_id")


def _has_token(router: "Router", request: Request) -> bool:
    return same_token(router.settings.token, request.headers.get(TOKEN_HEADER, b""))


def _pin(router: "Router", request: Request) -> Pin | None:
    prefill, decode = request.headers.get(PREFILL_URL), request.headers.get(DECODE_URL)
    if prefill is None and decode is None:
        return None
    if not _has_token(router, request):
        raise IntakeError(401, "choosing the engines of a request needs the deployment's token", "unauthorized")
    if decode is None or (router.settings.splitwise and prefill is None):
        raise IntakeError(400, "a request that chooses its engines must name each of them", "unknown_instance")
    return Pin(prefill.decode("latin-1") if prefill else None, decode.decode("latin-1"))


def _refuse(
    router: "Router",
    request: Request,
    client: Client,
    request_id: str,
    model: str,
    error: IntakeError | SelectionError,
) -> None:
    router.metrics.requests[request.path, model, error.status] += 1
    headers = RETRY_AFTER if error.status == 503 else WWW_AUTHENTICATE if error.status == 401 else b""
    if isinstance(error, IntakeError) and error.retry_after is not None:
        headers = b"retry-after: %d\r\n" % error.retry_after
    if request_id:
        headers += b"%b: %b\r\n" % (REQUEST_ID, request_id.encode())
    if router.access_log is not None:
        router.access_log.write([refusal(request, client, request_id, model, error.status, str(error))])
    client.error(error.status, str(error), code=error.code, headers=headers)
