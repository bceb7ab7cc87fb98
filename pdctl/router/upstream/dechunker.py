"""Takes HTTP's chunk framing off a body that an engine's connection has already found to be well framed."""

import httptools

_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Dechunker:
    """One body's."""

    __slots__ = ("_parser", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(_HEAD)

    def feed(self, framed: bytes) -> bytes:
        """The body's bytes in a piece of the framed body."""
        self._parser.feed_data(framed)
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return body

    def on_body(self, data: bytes) -> None:
        """Called by the parser with a chunk, or a part of one."""
        self._pieces.append(data)
