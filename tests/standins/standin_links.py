"""What prefill and decode say to each other: JSON objects, a line each, on a TCP connection of their own."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from socket import socket
from typing import Any

Message = dict[str, Any]


class PeerError(Exception):
    """The other leg failed, or never came."""


class Link:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Message) -> None:
        """Send one message. PeerError if the other side is gone."""
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
        except ConnectionError as error:
            raise PeerError(f"the other leg's engine is gone: {error}") from error

    async def receive(self) -> Message | None:
        """The next message; None at the end."""
        with suppress(ConnectionError):
            line = await self._reader.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        return None

    async def receive_or_wait(self) -> Message:
        """The next message; for ever silent where the other process is gone, as KV that does not come is silent."""
        message = await self.receive()
        return message if message is not None else await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Let go of the connection, after what has been sent."""
        self._writer.close()


async def connect(host: str, port: int) -> Link:
    """Reach the other engine. OSError if it does not listen."""
    return Link(*await asyncio.open_connection(host, port, limit=64 * 1024 * 1024))


async def listen(sock: socket, serve: Callable[[Link], Coroutine[Any, Any, None]]) -> asyncio.Server:
    """Serve each connection to a socket that listens."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        try:
            with suppress(PeerError):  # it was gone before its answer
                await serve(link)
        finally:
            link.close()

    return await asyncio.start_server(accept, sock=sock, limit=64 * 1024 * 1024)
