"""A process's life, and that of an engine on several hosts: a head that serves, followers that live as long as it."""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from socket import socket
from typing import NoReturn

from standin_faults import EndError, print_error
from standin_links import Link, connect, listen

_RENDEZVOUS_S = 600.0  # until all hosts of an engine have come
_AGAIN_S = 0.05


class Life:
    """Ends with a signal, or with what it depends on."""

    def __init__(self) -> None:
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, code: int) -> None:
        """Make the process exit; only the first call counts."""
        if not self._end.done():
            self._end.set_result(code)

    async def over(self) -> int:
        """Wait for the end; the exit code."""
        return await self._end


def run(main: Callable[[Life], Awaitable[None]]) -> NoReturn:
    """Run a process until its life ends."""
    sys.exit(asyncio.run(_run(main)))


async def _run(main: Callable[[Life], Awaitable[None]]) -> int:
    life = Life()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.end, 0)
    started = asyncio.ensure_future(main(life))
    over = asyncio.ensure_future(life.over())
    await asyncio.wait({started, over}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if started.done():
            started.result()
    except EndError:
        return 1
    return await over


class Head:
    """Waits for the other hosts of its engine. One that is lost ends the head, too."""

    def __init__(self, life: Life, nodes: int) -> None:
        self._life = life
        self._missing = set(range(1, nodes))
        self._complete = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def gather(self, sock: socket) -> None:
        """Take followers in; returns when all are there."""
        self._server = await listen(sock, self._follow)
        if self._missing:
            async with asyncio.timeout(_RENDEZVOUS_S):
                await self._complete.wait()

    async def _follow(self, link: Link) -> None:
        hello = await link.receive()
        if hello is None or hello.get("node_rank") not in self._missing:
            print_error(f"VIOLATION: a node came as {hello}, missing are {sorted(self._missing)}")
            return
        rank = hello["node_rank"]
        self._missing.discard(rank)
        if not self._missing:
            self._complete.set()
        await link.receive()  # says nothing more
        print_error(f"lost node {rank}")
        self._life.end(1)


async def follow(life: Life, rank: int, host: str, port: int) -> None:
    """Be a node of an engine whose head is elsewhere: serve nothing, and end with it."""
    link = await _reach(host, port)
    await link.send({"node_rank": rank})
    await link.receive()
    print_error(f"the head at {host}:{port} is gone")
    life.end(1)


async def _reach(host: str, port: int) -> Link:
    end = time.monotonic() + _RENDEZVOUS_S
    while True:
        try:
            return await connect(host, port)
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"waited {_RENDEZVOUS_S:g} s for the head at {host}:{port}: {error}") from error
        await asyncio.sleep(_AGAIN_S)
