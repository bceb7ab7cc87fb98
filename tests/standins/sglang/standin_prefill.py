"""SGLang's prefill: its bootstrap server, and the rooms in which decodes ask for KV."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from socket import socket
from typing import Any

from aiohttp import web
from standin_answers import Asked
from standin_faults import Strike
from standin_links import Link, Message, PeerError, listen
from standin_server import Engine, ViolationError

from sglang.standin_arguments import Arguments
from sglang.standin_body import is_warm_up, rooms_of


@dataclass
class Decode:
    """A decode that has come for a room's KV."""

    link: Link
    hello: Message
    served: asyncio.Future[None]


class Prefill(Engine):
    """Answers with one token, when its decode has come into the room and has got it."""

    python_errors = True

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.heartbeats = 0
        self._rooms: dict[int, asyncio.Future[Decode]] = {}  # those in which one side waits
        self._used: set[int] = set()
        self._kv_port = 0
        self._kv: asyncio.Server | None = None

    async def open(self, kv: socket) -> None:
        """Let decodes into rooms. `kv` is where the KV comes from, of which the bootstrap server tells."""
        self._kv_port = kv.getsockname()[1]
        self._kv = await listen(kv, self._enter)

    def bootstrap_app(self) -> web.Application:
        """Where decodes ask for the way to the KV, and whether the prefill is alive."""
        app = web.Application()
        app.add_routes([web.get("/health", self._health), web.get("/route", self._route)])
        return app

    def identity(self, body: dict[str, Any]) -> str:
        """The request's own name for itself, if any."""
        return str(body.get("rid") or "")

    def check(self, asked: Asked) -> None:
        """A room of this bootstrap server for each sequence, which nobody has used."""
        if is_warm_up(asked.body):
            return
        for host, port, room in rooms_of(asked):
            if port != self.arguments.bootstrap_port:
                raise ViolationError(f"bootstrap_port {port} is not this prefill's, {self.arguments.bootstrap_port}")
            if self.arguments.host not in ("0.0.0.0", "::", host):
                raise ViolationError(f"bootstrap_host {host} is not this prefill's, {self.arguments.host}")
            if room in self._used:
                raise ViolationError(f"bootstrap_room {room} was used before")
            self._used.add(room)

    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """Wait for the decode in each room, and give it its first token."""
        first = [asked.token(index, 0) for index in range(len(asked.sequences))]
        if is_warm_up(asked.body):
            return first
        rooms = [room for _, _, room in rooms_of(asked)]
        decodes = await self._decodes(rooms)
        try:
            for decode in decodes:
                self._compare(asked, decode.hello)
                await decode.link.send({"met": True})
            await strike.at("met")
            for decode, token in zip(decodes, first, strict=True):
                await decode.link.send({"first": token})
        except BaseException as error:
            for decode in decodes:
                with suppress(PeerError):
                    await decode.link.send({"error": f"the prefill failed: {str(error) or 'aborted'}"})
            raise
        finally:
            for decode in decodes:
                decode.served.set_result(None)
        return first

    def held(self) -> int:
        """Rooms in which one side waits for the other."""
        return len(self._rooms)

    async def _decodes(self, rooms: list[int]) -> list[Decode]:
        waiting = [self._rooms.setdefault(room, asyncio.get_running_loop().create_future()) for room in rooms]
        limit = self.arguments.bootstrap_timeout
        try:
            async with asyncio.timeout(limit):
                return [await one for one in waiting]
        except TimeoutError:
            raise PeerError(
                f"KVTransferError(bootstrap_room={rooms[0]}): Request {rooms[0]} timed out after {limit:g}s in "
                "KVPoll.Bootstrapping"
            ) from None
        finally:
            for room in rooms:
                self._rooms.pop(room, None)

    def _compare(self, asked: Asked, hello: Message) -> None:
        if hello["body"] != asked.digest:
            raise ViolationError(f"prefill and decode got different bodies for room {hello['room']}")
        mine = {"backend": self.arguments.backend, "allocation_policy": self.arguments.allocation_policy}
        for name, value in mine.items():
            if hello[name] != value:
                raise ViolationError(f"prefill has {name} {value}, its decode {hello[name]}")

    async def _enter(self, link: Link) -> None:
        hello = await link.receive()
        if hello is None:
            return
        room = hello["room"]
        waiting = self._rooms.setdefault(room, asyncio.get_running_loop().create_future())
        decode = Decode(link, hello, asyncio.get_running_loop().create_future())
        if waiting.done():
            await link.send({"error": f"room {room} has a decode already"})
            return
        waiting.set_result(decode)
        left = asyncio.ensure_future(link.receive())  # it says nothing more
        await asyncio.wait((left, decode.served), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not decode.served.done() and self._rooms.get(room) is waiting:
            del self._rooms[room]  # it left before the prefill came

    async def _health(self, _: web.Request) -> web.Response:
        self.heartbeats += 1
        return web.Response(text="OK")

    async def _route(self, _: web.Request) -> web.Response:
        host = "127.0.0.1" if self.arguments.host in ("0.0.0.0", "::") else self.arguments.host
        return web.json_response({"rank_ip": host, "rank_port": self._kv_port})
