"""What the workers of a router tell each other, over a socket to their supervisor, which passes it on to the others."""

import asyncio
import logging
import socket
from collections.abc import Callable
from itertools import count
from typing import cast

import msgspec

from pdctl.router.instance import Registration

log = logging.getLogger(__name__)

_LENGTH = 4  # bytes before each message


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker listens."""


class Registered(msgspec.Struct, frozen=True, tag=True):
    """An engine has registered, and is healthy."""

    registration: Registration


class Drained(msgspec.Struct, frozen=True, tag=True):
    """An operator drains an engine, or has it serve again."""

    key: str
    draining: bool


class Removed(msgspec.Struct, frozen=True, tag=True):
    """An operator removes an engine."""

    key: str


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """An operator aborts requests; none named: all."""

    ids: list[str]


class Asked(msgspec.Struct, frozen=True, tag=True):
    """A worker wants the others' figures."""

    number: int
    worker: int


class Figures(msgspec.Struct, frozen=True, tag=True):
    """A worker's figures, for the one that asked."""

    number: int
    worker: int
    snapshot: bytes


Message = Ready | Registered | Drained | Removed | Aborted | Asked | Figures
encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder().encode
decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(Message).decode


def framed(message: bytes) -> bytes:
    """A message as it is sent."""
    return len(message).to_bytes(_LENGTH, "big") + message


class Wire(asyncio.Protocol):
    """One end of a connection: cuts what comes into messages."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._unread = b""
        self._transport: asyncio.WriteTransport | None = None

    def send(self, message: bytes) -> None:
        """Send a message, if the other end is there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed(message))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._unread += data
        while len(self._unread) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._unread[:_LENGTH], "big")
            if len(self._unread) < end:
                return
            message, self._unread = self._unread[_LENGTH:end], self._unread[end:]
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._lost()


class Bus:
    """A worker's end. A router of one process has a bus that nobody else is on."""

    def __init__(self, worker: int = 0, workers: int = 1) -> None:
        self.worker = worker
        self.receive: Callable[[Message], None] = lambda _: None
        self.snapshot: Callable[[], bytes] = bytes  # this worker's figures
        self._others = workers - 1
        self._numbers = count()
        self._answers: dict[int, tuple[list[bytes], asyncio.Event]] = {}
        self._wire: Wire | None = None

    async def connect(self, sock: socket.socket, lost: Callable[[], None]) -> None:
        """Take the supervisor's socket; `lost` is called when the supervisor is gone."""
        self._wire = Wire(self._take, lost)
        wire = self._wire
        await asyncio.get_running_loop().create_connection(lambda: wire, sock=sock)

    def publish(self, message: Message) -> None:
        """Tell the others."""
        if self._wire is not None:
            self._wire.send(encode(message))

    async def collect(self, timeout: float) -> list[bytes]:
        """The others' figures; of those that do not answer in time, none."""
        if not self._others:
            return []
        number = next(self._numbers)
        answers, complete = self._answers[number] = ([], asyncio.Event())
        self.publish(Asked(number, self.worker))
        try:
            async with asyncio.timeout(timeout):
                await complete.wait()
        except TimeoutError:
            log.warning("figures of %d other workers did not come within %g s", self._others - len(answers), timeout)
        finally:
            del self._answers[number]
        return answers

    def close(self) -> None:
        """Leave."""
        if self._wire is not None:
            self._wire.close()

    def _take(self, data: bytes) -> None:
        message = decode(data)
        match message:
            case Asked(number, worker):
                self.publish(Figures(number, worker, self.snapshot()))
            case Figures(number, worker, snapshot):
                if worker == self.worker and number in self._answers:
                    answers, complete = self._answers[number]
                    answers.append(snapshot)
                    if len(answers) == self._others:
                        complete.set()
            case _:
                self.receive(message)
