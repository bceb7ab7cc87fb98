"""Reads the heads of engines' answers. An engine repeats itself: heads that have been seen are not read again."""

import httptools

from pdctl.router.messages import HOP_BY_HOP, ROUTER_HEADERS, Head

HTTP = b"HTTP/1."  # how every head begins
NOT_HTTP = "not a valid HTTP answer"

_NOT_RELAYED = HOP_BY_HOP | ROUTER_HEADERS | {b"content-length"}
_BODILESS = frozenset({204, 304})
_KNOWN = 512  # heads that are remembered
_LONGEST = 1024  # bytes of one that is

_known: dict[bytes, Head] = {}


def read_head(data: bytes) -> Head:
    """Read a whole head, its empty line included. ValueError if it is not valid HTTP."""
    head = _known.get(data)
    if head is not None:
        return head
    if not data.startswith(HTTP):  # the parser takes empty lines before it
        raise ValueError(NOT_HTTP)
    head = _Reader(data).head
    if len(data) <= _LONGEST:
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[data] = head
    return head


class _Reader:
    """Reads one head."""

    def __init__(self, data: bytes) -> None:
        self._headers: list[bytes] = []
        self._length: int | None = None
        self._sse = self._chunked = self._encoded = False
        self._head: Head | None = None
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ValueError(f"{NOT_HTTP}: {error.__context__ or error}") from None  # an error of a callback is within

    @property
    def head(self) -> Head:
        """What has been read."""
        if self._head is None:
            raise ValueError("not a whole HTTP answer")
        return self._head

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with a header."""
        lower = name.lower()
        if lower not in _NOT_RELAYED:
            self._headers.append(b"%b: %b\r\n" % (name, value))
            if lower == b"content-type":
                self._sse = value.lower().startswith(b"text/event-stream")
            elif lower == b"content-encoding":
                self._encoded = True
        elif lower == b"content-length":
            self._length = int(value)
        elif lower == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise ValueError("the only transfer encoding is chunked")
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Called by the parser after the last header."""
        status = self._parser.get_status_code()
        if status in _BODILESS:
            self._length, self._chunked = 0, False
        self._head = Head(
            status,
            b"".join(self._headers),
            self._length,
            self._sse and not self._encoded,
            self._chunked,
            self._parser.should_keep_alive(),
        )
