"""What the two sides tell each other over the data connection: first how to connect, then what has come."""

import asyncio
import struct
from typing import TypeVar

import msgspec

from engine.errors import TransferError
from engine.transfer.transports.rdma.addresses import PortAddress
from engine.transfer.transports.rdma.memory import Span

_LENGTH = struct.Struct("!I")
_MOST = 1 << 20  # bytes of a message

FRAME = struct.Struct("!BBI")  # what, lane, number
ACK = 1  # decode: all bytes of the stripe with that number are there
CLOSE = 2  # prefill: this lane has failed, let nothing more come over it
CLOSED = 3  # decode: nothing comes over this lane any more
SPANS = 4  # prefill: what the stripe with that number writes; spans follow, where decode wants them


class Offer(msgspec.Struct, frozen=True):
    """Decode: where to connect, and its NICs. Travels in the welcome of the handshake."""

    port: int
    key: bytes
    nbytes: int  # of the pool
    ports: list[PortAddress]


class LaneRequest(msgspec.Struct, frozen=True):
    """Prefill: its end of one lane, and which of the offered ports it is for."""

    source: PortAddress
    target: int  # the place in Offer.ports
    number: int  # of the queue pair
    psn: int


class Hello(msgspec.Struct, frozen=True):
    """Prefill: the lanes that it wants."""

    lanes: list[LaneRequest]


class LaneAnswer(msgspec.Struct, frozen=True):
    """Decode: its end of one lane, or what went wrong."""

    number: int = 0
    psn: int = 0
    address: int = 0  # of the pool's first byte
    rkey: int = 0
    error: str = ""


class Welcome(msgspec.Struct, frozen=True):
    """Decode: an answer for each lane, in the same order."""

    lanes: list[LaneAnswer]
    wants_spans: bool = False


class Spans(msgspec.Struct, frozen=True):
    """Prefill: places in decode's pool."""

    spans: list[Span]


_T = TypeVar("_T", Hello, Welcome, Spans)


def send(stream: asyncio.StreamWriter, message: Hello | Welcome | Spans) -> None:
    """Send a message."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)


async def receive(reader: asyncio.StreamReader, kind: type[_T]) -> _T:
    """Receive a message. Raises TransferError for nonsense, EOFError and OSError where the connection ends."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > _MOST:
        raise TransferError(f"a message of {length} bytes on an RDMA data connection")
    try:
        return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)
    except msgspec.DecodeError as error:
        raise TransferError(f"a malformed {kind.__name__.lower()} on an RDMA data connection: {error}") from None
