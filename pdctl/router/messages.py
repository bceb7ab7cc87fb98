"""HTTP/1.1 messages as the router passes them on."""

from http import HTTPStatus
from typing import Literal, NamedTuple

import msgspec

JSON = b"application/json"
RETRY_AFTER = b"retry-after: 5\r\n"  # engines register every 5 s

# Headers of one connection: they end at the router (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
TOKEN_HEADER = b"x-pdctl-token"
REQUEST_ID = b"x-request-id"
PREFILL_URL = b"x-router-prefill-url"
DECODE_URL = b"x-router-decode-url"
ROUTER_HEADERS = frozenset({REQUEST_ID, PREFILL_URL, DECODE_URL})

# Request headers that the router reads itself, by name; all others go to the engines as they came.
READ_HERE = HOP_BY_HOP | ROUTER_HEADERS | {b"host", b"content-length", b"expect", b"accept-encoding", TOKEN_HEADER}
SESSION = b"x-session-id"
ALSO_READ = frozenset({b"authorization", SESSION})  # and forwarded

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Request(msgspec.Struct, frozen=True):
    """A whole request. Header names are in lower case."""

    method: bytes
    target: bytes  # path and query, as sent
    path: bytes
    headers: dict[bytes, bytes]  # those of READ_HERE and ALSO_READ
    forwarded: bytes  # header lines for the engines
    body: bytes
    http11: bool
    keep_alive: bool


class Refusal(NamedTuple):
    """Bytes that cannot become a request: the answer that they get before the connection is closed."""

    status: int
    message: str


class Head(NamedTuple):
    """The head of an engine's answer. `headers` are whole lines, without those of the connection."""

    status: int
    headers: bytes
    length: int | None  # of the body; None: known at its end
    event_stream: bool  # uncompressed SSE
    chunked: bool  # the body comes in HTTP's chunks
    keep_alive: bool  # the connection may carry another answer


class Failure(NamedTuple):
    """Why a call has no whole answer: no connection, one that ended too early or is not HTTP, a hanging engine."""

    kind: Literal["connect", "dropped", "invalid", "hung"]
    reason: str


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
