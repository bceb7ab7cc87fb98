"""Clients repeat themselves: a head that differs from the last one in the length only is not parsed again."""

import re
from typing import NamedTuple, Self

from pdctl.router.messages import Request

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_LONGEST = 8 * 1024  # bytes of a head that is kept for each connection
_MOST_DIGITS = 12


class LastHead(NamedTuple):
    """The head of a connection's last request, one with a Content-Length."""

    before: bytes  # the length's value
    after: bytes  # it, with the empty line
    request: Request

    @classmethod
    def of(cls, data: bytes, request: Request) -> Self | None:
        """That of `data`, which is the whole request; None if it is not worth to be kept."""
        end = data.find(b"\r\n\r\n") + 4
        lengths = _LENGTH.findall(data, 0, end)
        found = _LENGTH.search(data, 0, end)
        if found is None or len(lengths) != 1 or end > _LONGEST or not request.keep_alive:
            return None
        return cls(data[: found.start(1)], data[found.end(1) : end], request)

    def repeat(self, data: bytes) -> Request | None:
        """The request that `data` is, if it is one whole request with this head."""
        start = len(self.before)
        end = data.find(b"\r", start, start + _MOST_DIGITS)
        if end < 0 or not data.startswith(self.before) or not data.startswith(self.after, end):
            return None
        digits, body = data[start:end], data[end + len(self.after) :]
        if not digits.isdigit() or len(body) != int(digits):
            return None
        last = self.request
        return Request(
            last.method, last.target, last.path, last.headers, last.forwarded, body, last.http11, last.keep_alive
        )
