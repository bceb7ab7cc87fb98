"""A connection to an engine without a socket: a test says what each read brings."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pdctl.router.messages import Failure, Head
from pdctl.router.settings import Limits
from pdctl.router.upstream.connection import EngineConnection
from pdctl.router.upstream.dechunker import Dechunker
from pdctl.router.upstream.pool import Call, Pool


class Transport:
    """What a connection is given instead of a socket."""

    def __init__(self) -> None:
        self.closed = False
        self.written = b""

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Ask(Call):
    """Takes down what becomes of it."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool, b"asked")
        self.head: Head | None = None
        self.framed = b""  # the body as it came
        self.reads = 0
        self.ended = False
        self.failure: Failure | None = None

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        assert not self.ended
        assert (head is None) == (self.head is not None), "one head, and it is first"
        self.head = head or self.head
        self.framed += body
        self.reads += 1
        self.ended = end

    def failed(self, failure: Failure) -> None:
        assert not self.ended
        assert self.failure is None
        self.failure = failure

    @property
    def body(self) -> bytes:
        """Without its framing."""
        assert self.head is not None
        return Dechunker().feed(self.framed) if self.head.chunked else self.framed


@dataclass
class Conversation:
    """One connection, and the calls that it carries."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.pool = Pool("127.0.0.1", 1, self.limits)
        self.transport = Transport()
        self.call = Ask(self.pool)
        self.connection = EngineConnection(self.pool, self.call)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    @property
    def kept(self) -> bool:
        return self.pool.idle == 1 and not self.transport.closed

    def hear(self, *pieces: bytes) -> Ask:
        """What the engine sends, read by read; nothing more is read once the connection is closed."""
        for piece in pieces:
            if piece and not self.transport.closed:
                self.connection.data_received(piece)
        return self.call

    def next_call(self) -> Ask:
        """The kept connection's next call."""
        assert self.kept
        self.call = Ask(self.pool)
        self.pool.send(self.call)
        return self.call


def cut(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]
