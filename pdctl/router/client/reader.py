"""Cuts a client's byte stream into requests, and refuses what is malformed, hostile, or too large."""

from collections import deque
from typing import Literal

import httptools

from pdctl.router.client.repeated import LastHead
from pdctl.router.messages import ALSO_READ, READ_HERE, Refusal, Request
from pdctl.router.settings import Limits

Phase = Literal["idle", "head", "body"]


class Budget:
    """Bytes of bodies that all connections together may hold."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class RequestReader:
    """One client's requests, in order, in `ready`. After a Refusal nothing more is read."""

    __slots__ = (
        "_body",
        "_body_size",
        "_budget",
        "_forwarded",
        "_head_size",
        "_headers",
        "_http11",
        "_keep_alive",
        "_last",
        "_limits",
        "_parser",
        "_unframed",
        "_url",
        "closed",
        "expects_continue",
        "held",
        "phase",
        "ready",
        "steps",
    )

    def __init__(self, limits: Limits, budget: Budget) -> None:
        self._limits = limits
        self._budget = budget
        self.held = 0  # bytes of bodies, of which the budget knows
        self._parser = httptools.HttpRequestParser(self)
        self._last: LastHead | None = None
        self.ready: deque[Request | Refusal] = deque()
        self.phase: Phase = "idle"
        self.steps = 0  # grows whenever the phase changes
        self.closed = False  # nothing more is read
        self.expects_continue = False  # the client waits for "100 Continue" before it sends the body
        self.on_message_begin()
        self._set_phase("idle")

    def feed(self, data: bytes) -> None:
        """Read on; whole requests, and at most one refusal as the last, are added to `ready`."""
        if self.closed:
            return
        whole = self.phase == "idle"  # perhaps: the data begin with a request
        if whole and self._last is not None:
            request = self._last.repeat(data)
            if request is not None and len(request.body) <= self._limits.body_bytes:
                self.steps += 1
                self._hold(len(request.body))
                self.ready.append(request)
                return
        steps, waiting = self.steps, len(self.ready)
        self._parse(data)
        self._bound_framing(len(data) if self.steps == steps else 0)
        if whole and self.phase == "idle" and len(self.ready) == waiting + 1:
            self._remember(data)

    def release(self, size: int) -> None:
        """The body of a request is needed no more."""
        self.held -= size
        self._budget.used -= size

    def on_message_begin(self) -> None:
        """Called by the parser at a request's first byte."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._forwarded: list[bytes] = []
        self._body: list[bytes] = []
        self._head_size = self._body_size = self._unframed = 0
        self._set_phase("head")

    def on_url(self, url: bytes) -> None:
        """Called by the parser with a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with a header, and with each trailer after a chunked body."""
        if self.phase == "body":
            return  # trailers could pass for headers: they end here
        self._head_size += len(name) + len(value) + 4
        name = name.lower()
        if name not in READ_HERE:
            self._forwarded.append(b"%b: %b\r\n" % (name, value))
            if name not in ALSO_READ:
                return
        value = value.rstrip(b" \t")  # the parser takes whitespace off the beginning only
        earlier = self._headers.get(name)
        self._headers[name] = value if earlier is None else earlier + b"," + value

    def on_headers_complete(self) -> None:
        """Called by the parser after the last header."""
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        self._http11 = version == "1.1"
        self._keep_alive = parser.should_keep_alive() and not parser.should_upgrade()
        self._set_phase("body")
        refusal = self._head_refusal(version)
        if refusal is not None:
            self._refuse(*refusal)
            return
        self.expects_continue = self._http11 and b"expect" in headers
        connection = headers.get(b"connection")
        if connection is not None:
            self._drop_connection_headers(connection)

    def on_body(self, data: bytes) -> None:
        """Called by the parser with a piece of the body."""
        if self.closed:
            return
        self._body_size += len(data)
        if self._body_size > self._limits.body_bytes:
            self._refuse(413, f"the body is larger than {self._limits.body_bytes} bytes")
            return
        self._hold(len(data))
        if self._budget.used > self._budget.limit:
            self._refuse(503, f"the router holds {self._budget.limit} bytes of requests, which is its limit")
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Called by the parser at a request's end."""
        if self.closed or self._skips_body():
            return
        target, headers, body = _origin_form(self._url), self._headers, self._body
        self.ready.append(
            Request(
                method=self._parser.get_method(),
                target=target,
                path=target.partition(b"?")[0],
                headers=headers,
                forwarded=b"".join(self._forwarded),
                body=body[0] if len(body) == 1 else b"".join(body),
                http11=self._http11,
                keep_alive=self._keep_alive,
            )
        )
        self._body = []
        self.expects_continue = False
        self._set_phase("idle")

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # no other protocol is spoken here: the request is answered
            if self.closed or not self._skips_body():
                self.closed = True
            else:
                self._read_body(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP request: {error}")

    def _skips_body(self) -> bool:
        """Whether the parser leaves out the body, because its client offers another protocol."""
        parser, headers = self._parser, self._headers
        if not parser.should_upgrade() or parser.get_method() == b"CONNECT":
            return False
        return b"content-length" in headers or b"transfer-encoding" in headers

    def _read_body(self, data: bytes) -> None:
        """Read the body that the parser leaves out; it is the last one of its connection."""
        length = self._headers.get(b"content-length")
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
        method = self._parser.get_method()
        self._parser = httptools.HttpRequestParser(_BodyOnly(self))
        self._parse(b"%b / HTTP/1.1\r\nconnection: close\r\n%b\r\n\r\n" % (method, framing))
        self._parse(data)

    def _remember(self, data: bytes) -> None:
        request = self.ready[-1]
        if isinstance(request, Request) and not self.closed:
            self._last = LastHead.of(data, request)

    def _hold(self, size: int) -> None:
        self.held += size
        self._budget.used += size

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        self.steps += 1

    def _refuse(self, status: int, message: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._body = []
        self.ready.append(Refusal(status, message))

    def _head_refusal(self, version: str) -> Refusal | None:
        headers, limits = self._headers, self._limits
        if self._head_size + len(self._url) > limits.head_bytes:
            return Refusal(431, f"the request's headers are larger than {limits.head_bytes} bytes")
        if version not in ("1.0", "1.1"):
            return Refusal(505, f"HTTP/{version} is not spoken here")
        # The parser refuses a request with both; this one must never depend on its leniencies.
        if b"transfer-encoding" in headers and (b"content-length" in headers or not self._http11):
            return Refusal(400, "Transfer-Encoding with Content-Length, or in HTTP/1.0")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            return Refusal(501, "the only transfer encoding is chunked")
        if self._http11 and (b"host" not in headers or b"," in headers[b"host"]):
            return Refusal(400, "a request needs exactly one Host header")
        if int(headers.get(b"content-length", 0)) > limits.body_bytes:
            return Refusal(413, f"the body is larger than {limits.body_bytes} bytes")
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            return Refusal(417, "the only expectation that can be met is 100-continue")
        return None

    def _drop_connection_headers(self, connection: bytes) -> None:
        """Drop the headers that `Connection` names, as well as those that belong to a connection by definition."""
        named = {name.strip().lower() for name in connection.split(b",")} - {b"close", b"keep-alive"}
        if named:
            self._forwarded = [line for line in self._forwarded if line.partition(b":")[0] not in named]

    def _bound_framing(self, received: int) -> None:
        """Bound what the parser holds or skips: unfinished headers, chunk extensions, trailers.

        `received` counts bytes that all belong to one request; a body may cost eight times its size on the wire,
        which is what one-byte chunks take and more.
        """
        if self.phase == "idle":
            return
        self._unframed += received
        if self._unframed > 2 * self._limits.head_bytes + 8 * self._body_size:
            self._refuse(431, f"the request's headers or chunk framing exceed {2 * self._limits.head_bytes} bytes")


class _BodyOnly:
    """Tells a reader of a request's body and end, but not of its head."""

    def __init__(self, reader: RequestReader) -> None:
        self.on_body = reader.on_body
        self.on_message_complete = reader.on_message_complete


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target, or `*`; what has neither stays as it is."""
    if target.startswith((b"/", b"*")):
        return target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target
    path: bytes = url.path or b"/"
    return path if url.query is None else b"%b?%b" % (path, url.query)
