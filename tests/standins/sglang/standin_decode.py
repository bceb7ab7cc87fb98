"""SGLang's decode: goes to the prefill's bootstrap server, and waits in the room for the KV."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
from standin_answers import Asked
from standin_faults import Strike, print_error
from standin_links import Link, Message, PeerError, connect
from standin_server import Engine, ViolationError

from sglang.standin_arguments import Arguments
from sglang.standin_body import Room, is_warm_up, rooms_of

T = TypeVar("T")


class Bootstrap:
    """A prefill's bootstrap server, which is asked for its health as long as it answers."""

    def __init__(self, kv: tuple[str, int]) -> None:
        self.kv = kv
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def unless_lost(self, work: Coroutine[Any, Any, T], room: int) -> T:
        """Do something that needs the prefill. PeerError when it is lost."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self.lost), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise PeerError(f"KVTransferError(bootstrap_room={room}): Losing connection with prefill instance")
        finally:
            task.cancel()


class Decode(Engine):
    """Cannot prefill. Its first token comes with the KV."""

    python_errors = True

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._bootstraps: dict[tuple[str, int], Bootstrap] = {}
        self._heartbeats: set[asyncio.Task[None]] = set()
        self._waiting = 0

    def identity(self, body: dict[str, Any]) -> str:
        """The request's own name for itself, if any."""
        return str(body.get("rid") or "")

    def check(self, asked: Asked) -> None:
        """A room for each sequence."""
        if not is_warm_up(asked.body):
            rooms_of(asked)

    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """Ask for the KV of each sequence."""
        if is_warm_up(asked.body):
            return [asked.token(index, 0) for index in range(len(asked.sequences))]
        self._waiting += 1
        tasks = [asyncio.ensure_future(self._take(asked, room, strike)) for room in rooms_of(asked)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            self._waiting -= 1
            for task in tasks:
                task.cancel()

    def held(self) -> int:
        """Requests that wait for their KV."""
        return self._waiting

    async def _take(self, asked: Asked, room: Room, strike: Strike) -> str:
        host, port, number = room
        bootstrap = await self._bootstrap(host, port, number)
        link = await self._enter(bootstrap, asked, number)
        try:
            limit = self._arguments.bootstrap_timeout
            await self._hear(bootstrap, link, number, "met", limit, "KVPoll.Bootstrapping")
            await strike.at("met")
            limit = self._arguments.waiting_timeout
            told = await self._hear(bootstrap, link, number, "first", limit, "KVPoll.WaitingForInput")
        finally:
            link.close()
        return str(told["first"])

    async def _enter(self, bootstrap: Bootstrap, asked: Asked, number: int) -> Link:
        try:
            link = await connect(*bootstrap.kv)
        except OSError as error:
            raise PeerError(f"KVTransferError(bootstrap_room={number}): {error}") from error
        await link.send(
            {
                "room": number,
                "body": asked.digest,
                "backend": self._arguments.backend,
                "allocation_policy": self._arguments.allocation_policy,
            }
        )
        return link

    async def _hear(
        self, bootstrap: Bootstrap, link: Link, number: int, name: str, limit: float, state: str
    ) -> Message:
        try:
            async with asyncio.timeout(limit):
                told = await bootstrap.unless_lost(link.receive_or_wait(), number)
        except TimeoutError:
            raise PeerError(
                f"KVTransferError(bootstrap_room={number}): Request {number} timed out after {limit:g}s in {state}"
            ) from None
        if "error" in told:
            raise PeerError(f"KVTransferError(bootstrap_room={number}): {told['error']}")
        if name not in told:
            raise ViolationError(f"the prefill said {told} and not {name}")
        return told

    async def _bootstrap(self, host: str, port: int, number: int) -> Bootstrap:
        known = self._bootstraps.get((host, port))
        if known is not None:
            return known
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://{host}:{port}/route") as response:
                told = await response.json()
        except (OSError, aiohttp.ClientError) as error:
            raise PeerError(
                f"KVTransferError(bootstrap_room={number}): Could not fetch prefill parallel info from "
                f"bootstrap server {host}:{port}: {error}"
            ) from error
        if (host, port) not in self._bootstraps:  # while this one asked, another request may have
            bootstrap = self._bootstraps[host, port] = Bootstrap((told["rank_ip"], told["rank_port"]))
            task = asyncio.ensure_future(self._heartbeat(host, port, bootstrap))
            self._heartbeats.add(task)
            task.add_done_callback(self._heartbeats.discard)
        return self._bootstraps[host, port]

    async def _heartbeat(self, host: str, port: int, bootstrap: Bootstrap) -> None:
        """Ask a bootstrap server for its health until it fails too often; then it is asked anew for its route."""
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
            while failures < self._arguments.heartbeat_failures:
                await asyncio.sleep(self._arguments.heartbeat_interval)
                failures = 0 if await _is_healthy(http, f"http://{host}:{port}/health") else failures + 1
        print_error(f"Losing connection with prefill instance (bootstrap_addr: {host}:{port})")
        del self._bootstraps[host, port]
        bootstrap.lost.set_result(None)


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as response:
            return response.status == 200
    except (OSError, aiohttp.ClientError, TimeoutError):
        return False
