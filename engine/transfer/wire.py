"""What prefill and decode say to each other: msgpack messages, each behind its length, on one TCP connection a pair."""

import asyncio
import logging
import socket
import struct
from typing import Any

import msgspec

from engine.transfer.base import TransferLimits
from engine.transfer.blocks import Shard

logger = logging.getLogger(__name__)

VERSION = 2
MAX_FRAME = 16 << 20  # a prompt of three million tokens
MAX_HANDSHAKE_FRAME = 64 << 10  # before the peer has proved who it is
MAX_BACKLOG = 64 << 20  # unsent bytes; a peer that leaves more unread is lost

_HEADER = struct.Struct("!I")


class Challenge(msgspec.Struct, tag="challenge", frozen=True):
    """Decode's first word: what the peer has to sign with the token, which itself never travels."""

    salt: bytes


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Prefill introduces itself."""

    version: int
    engine_id: str
    proof: bytes
    transports: list[str]  # that it can use, the best first
    compat: str
    layout: dict[str, Any]
    shard: Shard


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    """Decode accepts; an offer is what a transport needs to reach the pool, by the transport's name."""

    engine_id: str
    offers: dict[str, bytes]
    shard: Shard


class Rejected(msgspec.Struct, tag="rejected", frozen=True):
    """Decode does not accept the connection."""

    reason: str


class Chosen(msgspec.Struct, tag="chosen", frozen=True):
    """The first of the transports in both engines' lists that works between them, and why those before it do not."""

    transport: str
    passed_over: list[str]


class Reserve(msgspec.Struct, tag="reserve", frozen=True):
    """Prefill asks for blocks for a prompt. The nonce is new with every reservation and names it from here on."""

    request_id: str
    nonce: int
    prompt: list[int]


class Granted(msgspec.Struct, tag="granted", frozen=True):
    """The prompt's blocks, in token order. The leading cached_tokens (whole blocks) are there already."""

    request_id: str
    nonce: int
    blocks: list[int]
    cached_tokens: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """No blocks for that reservation; nothing of it is left on the decode side."""

    request_id: str
    nonce: int
    reason: str
    status: int
    code: str | None


class Done(msgspec.Struct, tag="done", frozen=True):
    """All KV is in place and nobody writes any more; first_tokens holds one token per choice."""

    request_id: str
    nonce: int
    first_tokens: list[int]
    bytes: int
    seconds: float
    checksum: int | None = None  # CRC-32 of the bytes pushed, in token order


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """From decode: stop writing, then say quiet. From prefill: I have given up, and nobody writes any more."""

    request_id: str
    nonce: int
    reason: str


class Quiet(msgspec.Struct, tag="quiet", frozen=True):
    """Prefill's answer to abort: nobody writes to that reservation any more."""

    request_id: str
    nonce: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """I am alive. Not answered: both sides send it."""


Message = (
    Challenge | Hello | Welcome | Rejected | Chosen | Reserve | Granted | Refused | Done | Abort | Quiet | Ping
)  # fmt: skip

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


class ChannelError(Exception):
    """The connection is over; the message says why."""


class Channel:
    """Messages both ways over one TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: TransferLimits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        _keep_alive(writer.get_extra_info("socket"))
        self._pinger = asyncio.create_task(self._ping())

    async def receive(self, *, max_frame: int = MAX_FRAME) -> Message:
        """Return the next message. Raises ChannelError when the connection is closed, silent, or talks nonsense."""
        while True:
            try:
                async with asyncio.timeout(self._limits.silence_s):
                    message = await self._read(max_frame)
            except TimeoutError:
                raise ChannelError(f"it has been silent for {self._limits.silence_s:g} s") from None
            if not isinstance(message, Ping):
                return message

    def send(self, message: Message) -> None:
        """Queue a message; on a connection that is lost it goes nowhere, and receive() tells of the loss."""
        if self._writer.is_closing():
            return
        frame = _encoder.encode(message)
        self._writer.write(_HEADER.pack(len(frame)) + frame)
        if self._writer.transport.get_write_buffer_size() > MAX_BACKLOG:
            logger.warning("KV peer %s leaves our messages unread: connection dropped", self.address)
            self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection; what is queued gets a second to leave."""
        self._pinger.cancel()
        self._writer.close()
        asyncio.get_running_loop().call_later(1.0, self._writer.transport.abort)

    @property
    def address(self) -> str:
        """The peer's address, for messages."""
        peer = self._writer.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if peer else "unknown"

    async def _read(self, max_frame: int) -> Message:
        try:
            (length,) = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            if length > max_frame:
                raise ChannelError(f"it sent a frame of {length} bytes where {max_frame} are allowed")
            return _decoder.decode(await self._reader.readexactly(length))
        except asyncio.IncompleteReadError:
            raise ChannelError("it closed the connection") from None
        except msgspec.DecodeError as error:
            raise ChannelError(f"it sent a malformed message: {error}") from None
        except OSError as error:
            raise ChannelError(f"the connection broke: {error}") from None

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._limits.ping_s)
            self.send(Ping())


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
