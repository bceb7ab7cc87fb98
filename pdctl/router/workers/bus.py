"""What the workers of a router tell each other, over a socket to their supervisor, which passes it on to the others."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import cast

import msgspec

from pdctl.errors import PdctlError
from pdctl.router.engines.instance import Registration, ServedModel
from pdctl.router.settings import Settings

log = logging.getLogger(__name__)

MAX_MESSAGE = 64 * 1024 * 1024  # bytes; figures are the largest
MAX_UNREAD = 16 * 1024 * 1024  # bytes waiting for the other end, before it is given up
_LENGTH = 4  # bytes before each message
_LEAVE = 1.0  # seconds for the last messages
_START = 10.0  # seconds for the supervisor to say what there is
_ANSWERS = 3.0  # seconds for the supervisor to gather what the others say: it waits for less


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first: what it was told at the router's start, whatever the files say by now."""

    settings: Settings
    debug: bool


class Joined(msgspec.Struct, frozen=True, tag=True):
    """A worker can take messages, and wants to know what there is."""


class CaughtUp(msgspec.Struct, frozen=True, tag=True):
    """To a worker: it has been told all that there is, and may listen."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker listens."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A worker cannot start."""

    message: str
    exit_code: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end, after the requests in flight or at once."""

    at_once: bool


class Reopen(msgspec.Struct, frozen=True, tag=True):
    """To a worker: its access log has been moved away."""


class Registered(msgspec.Struct, frozen=True, tag=True):
    """An engine has registered, and is healthy."""

    registration: Registration
    engine_id: str  # see Instance
    news: bool  # else it is a mere heartbeat
    served: ServedModel | None = None  # see Instance


class Found(msgspec.Struct, frozen=True, tag=True):
    """A worker has found an engine healthy that got no requests from it, or that has another engine id by now."""

    key: str
    engine_id: str  # see Instance
    served: ServedModel | None  # see Instance


class Drained(msgspec.Struct, frozen=True, tag=True):
    """An operator drains an engine, or has it serve again."""

    key: str
    draining: bool


class Removed(msgspec.Struct, frozen=True, tag=True):
    """An operator has removed an engine, or it tries to come back too soon."""

    key: str


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """An operator aborts requests; none named: all."""

    ids: list[str]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A worker wants the others' figures, or only to know that they have taken all that it told them before."""

    number: int
    figures: bytes | None  # its own; None: it does not want the others'


class Tell(msgspec.Struct, frozen=True, tag=True):
    """To a worker: it is asked."""

    number: int
    figures: bool


class Told(msgspec.Struct, frozen=True, tag=True):
    """A worker's answer."""

    number: int
    figures: bytes


class Answers(msgspec.Struct, frozen=True, tag=True):
    """To a worker that asked: how many have answered, and what those told last who have not in time, or are dead."""

    number: int = 0
    answered: int = 0
    figures: list[bytes] = []
    last_known: list[bytes] = []


Message = (
    Begin | Joined | CaughtUp | Ready | Failed | Stop | Reopen | Registered | Found | Drained | Removed | Aborted | Ask
    | Tell | Told | Answers
)  # fmt: skip
encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder().encode
decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(Message).decode


class Wire(asyncio.Protocol):
    """One end of a connection: cuts what comes into messages."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[str], None]) -> None:
        """`lost` is called once, with why the other end is given up, or "" if it is gone."""
        self._receive = receive
        self._lost = lost
        self._unread = bytearray()
        self._reason = ""
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def send(self, message: bytes) -> None:
        """Send a message, if the other end is there and reads."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(message) > MAX_MESSAGE:
            log.error("not told to other processes: %d bytes are more than %d", len(message), MAX_MESSAGE)
            return
        if transport.get_write_buffer_size() > MAX_UNREAD:
            self._give_up(f"it has left {MAX_UNREAD} bytes unread")
            return
        transport.write(len(message).to_bytes(_LENGTH, "big") + message)

    def close(self) -> None:
        """Close the connection, after what has been sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        unread, start = self._unread, 0
        unread += data
        while len(unread) - start >= _LENGTH:
            size = int.from_bytes(unread[start : start + _LENGTH], "big")
            if size > MAX_MESSAGE:
                self._give_up(f"it sent a message of {size} bytes")
                return
            end = start + _LENGTH + size
            if len(unread) < end:
                break
            self._receive(bytes(unread[start + _LENGTH : end]))
            start = end
        del unread[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.closed.set()
        self._lost(self._reason)

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        assert self._transport is not None
        self._transport.abort()


class Bus:
    """A worker's end. A router of one process has a bus that nobody else is on."""

    def __init__(self, worker: int = 0) -> None:
        self.worker = worker
        self.receive: Callable[[Message], None] = _nothing
        self.figures: Callable[[], bytes] = bytes  # this worker's
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Answers]] = {}
        self._expected: asyncio.Future[Message] | None = None  # what the supervisor has to say before it goes on
        self._wire: Wire | None = None
        self._stop: Callable[[bool], None] = _nothing

    async def connect(self, sock: socket.socket, stop: Callable[[bool], None]) -> Begin:
        """Take the supervisor's socket. PdctlError if it says nothing.

        `stop` is called when it says to stop, with whether that is at once, and when it is gone.
        """

        def gone(reason: str) -> None:
            if self._expected is not None and not self._expected.done():
                self._expected.set_exception(PdctlError("the router's first process is gone"))
            stop(False)

        loop = asyncio.get_running_loop()
        wire = self._wire = Wire(self._take, gone)
        self._stop = stop
        self._expected = loop.create_future()
        await loop.create_connection(lambda: wire, sock=sock)
        message = await self._await_expected("to begin")
        assert isinstance(message, Begin)
        return message

    async def join(self) -> None:
        """Be told all that there is, by calls of `receive`, and from now on all that the others tell."""
        self._expected = asyncio.get_running_loop().create_future()
        self.publish(Joined())
        await self._await_expected("to tell which engines there are")

    def publish(self, message: Message) -> None:
        """Tell the others."""
        if self._wire is not None:
            self._wire.send(encode(message))

    async def settle(self) -> None:
        """Wait until all others have taken what has been published, for a while."""
        await self._ask(None)

    async def collect(self) -> Answers:
        """The others' figures."""
        return await self._ask(self.figures() if self._wire is not None else b"")

    async def leave(self) -> None:
        """Close the connection, after what has been published."""
        if self._wire is None:
            return
        self._wire.close()
        with suppress(TimeoutError):  # the supervisor does not read: it will see this process's end
            await asyncio.wait_for(self._wire.closed.wait(), _LEAVE)

    async def _ask(self, figures: bytes | None) -> Answers:
        if self._wire is None:
            return Answers()
        number = next(self._numbers)
        answers = self._asked[number] = asyncio.get_running_loop().create_future()
        self.publish(Ask(number, figures))
        try:
            return await asyncio.wait_for(answers, _ANSWERS)
        except TimeoutError:
            log.warning("waited %g s for the router's first process to say what the other workers answer", _ANSWERS)
            return Answers()
        finally:
            del self._asked[number]

    async def _await_expected(self, what: str) -> Message:
        assert self._expected is not None
        try:
            return await asyncio.wait_for(self._expected, _START)
        except TimeoutError:
            raise PdctlError(f"waited {_START:g} s for the router's first process {what}") from None

    def _take(self, data: bytes) -> None:
        message = decode(data)
        match message:
            case Tell(number, figures):
                self.publish(Told(number, self.figures() if figures else b""))
            case Answers(number):
                if number in self._asked and not self._asked[number].done():
                    self._asked[number].set_result(message)
            case Stop(at_once):
                self._stop(at_once)
            case Begin() | CaughtUp():
                if self._expected is not None and not self._expected.done():
                    self._expected.set_result(message)
            case _:
                self.receive(message)


def _nothing(_: object) -> None:
    pass
