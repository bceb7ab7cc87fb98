"""The connection between source and target on which they agree, a line of JSON each way."""

import asyncio
import socket
from typing import Self, TypeVar

import msgspec

from engine.errors import EngineError, TransferError
from engine.transfer.doorway import knock
from engine.transfer.measure.messages import Reply, Request
from engine.transfer.waits import deadline

_CONNECT_S = 10.0
_ANSWER_S = 60.0  # a pool of many gigabytes to be made and registered
_LINE_BYTES = 4 << 20

_Answer = TypeVar("_Answer", bound=Reply)


class ControlError(EngineError):
    """The other process cannot be reached, or has gone."""


class Control:
    """Requests one way, replies the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, host: str, port: int, key: bytes) -> Self:
        """The source's side. Raises ControlError."""
        try:
            async with deadline(_CONNECT_S, f"the target at {host}:{port}"):
                return await cls.over(await knock(host, port, key))
        except (OSError, TransferError) as error:
            raise ControlError(f"the target at {host}:{port} cannot be reached: {error}") from None

    @classmethod
    async def over(cls, sock: socket.socket) -> Self:
        """Either side, on a connection that has been made."""
        return cls(*await asyncio.open_connection(sock=sock, limit=_LINE_BYTES))

    @property
    def addresses(self) -> tuple[str, str]:
        """This side's, and the other's."""
        own, peer = (self._writer.get_extra_info(name)[0] for name in ("sockname", "peername"))
        return own, peer

    async def ask(self, request: Request, expected: type[_Answer]) -> _Answer:
        """Send a request and wait for what answers it. Raises ControlError; TransferError when it takes too long."""
        self.send(request)
        async with deadline(_ANSWER_S, f"the target's answer to {type(request).__name__.lower()}"):
            line = await self._line()
        if not line:
            raise ControlError("the target has gone")
        return msgspec.json.decode(line, type=expected)

    async def next_request(self) -> Request | None:
        """Wait for a request, as long as it takes; None: the source has gone."""
        line = await self._line()
        return msgspec.json.decode(line, type=Request) if line else None

    def send(self, message: Request | Reply) -> None:
        """Send a request or a reply."""
        self._writer.write(msgspec.json.encode(message) + b"\n")

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def _line(self) -> bytes:
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""
