"""Hosts that try whether they reach each other: each listens where its processes will, and visits the others meanwhile.

A visit is a greeting and, both ways, more than fits a packet: where a network takes only smaller packets than the hosts
send, and does not say so, the greeting gets through and the rest does not.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import Any, Awaitable, Dict, List, Set, Tuple, TypeVar

STEP_S = 3.0  # for each part of a visit, once a connection is there
_RETRY_S = 0.2  # the other host may not listen yet
_BULK = b"x" * (64 * 1024)
_GOT = b"got\n"

Result = TypeVar("Result")
Visit = Tuple[str, int]  # who comes, and to which port


def meet(request: Dict[str, Any]) -> Dict[str, Any]:
    """Listen and visit until everybody has met, for ``seconds`` at most. Blocks.

    ``token``: what all know; ``name``: this host's; ``listen``: [address, port]; ``expect``: the names of those who
    come, to each port; ``reach``: [host, address, port]. Returns ``deaf``: [port, reason] of those that could not be
    listened on, and ``visits``: [host, port, outcome], an outcome being ``met``, ``refused``, ``silent``, ``no route``,
    ``unknown name``, ``stranger`` (something else answers), ``stuck there`` or ``stuck back`` (only little gets
    through, seen from here).
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(_hold(request))


async def _hold(request: Dict[str, Any]) -> Dict[str, Any]:
    return await _Meeting(request).hold()  # made here: what waits is of this loop


class _Meeting:
    def __init__(self, request: Dict[str, Any]) -> None:
        self._greeting = f"pdctl meet {request['token']}"
        self._answer = f"pdctl met {request['token']}\n".encode()
        self._name = request["name"]
        self._listen: List[Tuple[str, int]] = request["listen"]
        self._reach: List[Tuple[str, str, int]] = request["reach"]
        self._seconds: float = request["seconds"]
        self._expect: List[str] = request["expect"]
        self._servers: List[asyncio.AbstractServer] = []
        self._deaf: List[Tuple[int, str]] = []
        self._awaited: Set[Visit] = set()
        self._all_came = asyncio.Event()
        self._hosting: Set["asyncio.Task[None]"] = set()

    async def hold(self) -> Dict[str, Any]:
        end = asyncio.get_running_loop().time() + self._seconds
        for address, port in self._listen:
            await self._serve(address, port)
        self._check_all_came()
        visits = await asyncio.gather(*(self._visit(*place, end) for place in self._reach))
        await asyncio.wait([asyncio.ensure_future(self._all_came.wait())], timeout=_left(end))
        for server in self._servers:
            server.close()
        if self._hosting:
            await asyncio.wait(self._hosting, timeout=2 * STEP_S)
        return {"deaf": self._deaf, "visits": visits}

    async def _serve(self, address: str, port: int) -> None:
        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._hosting.add(task)
            try:
                await self._welcome(port, reader, writer)
            except (OSError, ValueError, EOFError, asyncio.TimeoutError):
                pass  # who leaves early comes again, or knows why not
            finally:
                self._hosting.discard(task)
                writer.close()

        try:
            self._servers.append(await asyncio.start_server(welcome, address, port, family=_family(address)))
        except OSError as error:
            self._deaf.append((port, os.strerror(error.errno) if error.errno else str(error)))
            return
        self._awaited |= {(name, port) for name in self._expect}

    async def _welcome(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting, _, name = (await _step(reader.readline())).decode().rstrip("\n").rpartition(" ")
        if greeting != self._greeting:
            return
        writer.write(self._answer)
        await _step(reader.readexactly(len(_BULK)))
        writer.write(_GOT + _BULK)
        await _step(reader.read())  # until the visitor has closed: what lingers of a connection is not to hold our port
        self._awaited.discard((name, port))
        self._check_all_came()

    def _check_all_came(self) -> None:
        if not self._awaited:
            self._all_came.set()

    async def _visit(self, host: str, address: str, port: int, end: float) -> Tuple[str, int, str]:
        """Visit until an outcome is certain: what is refused may listen soon."""
        while True:
            outcome = await self._visit_once(address, port, end)
            if outcome not in ("refused", "no route") or _left(end) <= _RETRY_S:
                return host, port, outcome
            await asyncio.sleep(_RETRY_S)

    async def _visit_once(self, address: str, port: int, end: float) -> str:
        try:
            connecting = asyncio.open_connection(address, port, family=_family(address))
            reader, writer = await asyncio.wait_for(connecting, _left(end))
        except asyncio.TimeoutError:
            return "silent"
        except OSError as error:
            return _outcome_of(error)
        try:
            return await self._talk(reader, writer)
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        failure = "stranger"
        try:
            writer.write(f"{self._greeting} {self._name}\n".encode())
            if await _step(reader.readexactly(len(self._answer))) != self._answer:
                return failure
            failure = "stuck there"
            writer.write(_BULK)
            await _step(reader.readexactly(len(_GOT)))
            failure = "stuck back"
            await _step(reader.readexactly(len(_BULK)))
        except (OSError, EOFError, asyncio.TimeoutError):
            return failure
        return "met"


def _outcome_of(error: OSError) -> str:
    if isinstance(error, (ConnectionRefusedError, ConnectionResetError)):
        return "refused"
    if isinstance(error, socket.gaierror):
        return "unknown name"
    return "silent" if isinstance(error, TimeoutError) else "no route"


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def _step(work: "Awaitable[Result]") -> Result:
    return await asyncio.wait_for(work, STEP_S)
