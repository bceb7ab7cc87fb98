"""Stand-ins as processes, on ports that are free."""

import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from router_mocks import LIMIT
from router_processes import Process

from tests.processes import kill_all

HERE = Path(__file__).parent
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
START_S = 60.0  # a process may take so long to come up or to end, where others have the machine
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 4}


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, below those that the kernel gives to connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


@dataclass
class StandIn:
    """A running stand-in."""

    process: asyncio.subprocess.Process
    port: int
    log: bytearray

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str) -> httpx.Response:
        async with client(self.port) as http:
            return await http.get(path)

    async def post(self, body: Mapping[str, object], path: str = CHAT) -> httpx.Response:
        async with client(self.port) as http:
            return await http.post(path, json=body)

    async def violations(self) -> list[str]:
        return (await self.get("/standin/violations")).json()

    async def healthy(self) -> None:
        await eventually(self._is_healthy, f"{self.url}/health to be 200")

    async def idle(self) -> None:
        """Wait until no request is served, and nothing is held for one."""

        async def is_idle() -> bool:
            return (await self.get("/standin/state")).json() == {"running": 0, "held": 0}

        await eventually(is_idle, f"{self.url} to be idle")

    async def holds(self) -> None:
        """Wait until something waits for its other leg."""

        async def is_waiting() -> bool:
            return (await self.get("/standin/state")).json()["held"] > 0

        await eventually(is_waiting, f"{self.url} to wait for another leg")

    async def exit(self) -> int:
        async with asyncio.timeout(START_S):
            return await self.process.wait()

    async def says(self, text: str) -> None:
        async def has_said() -> bool:
            return text.encode() in self.log

        await eventually(has_said, f"{self.url} to say {text!r}")

    async def _is_healthy(self) -> bool:
        assert self.process.returncode is None, self.log.decode()
        try:
            return (await self.get("/health")).status_code == 200
        except httpx.TransportError:
            return False


async def eventually(condition, what: str) -> None:
    """Ask again and again, for what no event tells of."""
    loop = asyncio.get_running_loop()
    end = loop.time() + START_S
    while not await condition():
        assert loop.time() < end, f"waited {START_S:g} s for: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def standin(module: str, *flags: object, port: int = 0, **env: str) -> AsyncIterator[StandIn]:
    """A stand-in that is starting; `port`: that of its API."""
    environment = os.environ | {"PYTHONPATH": str(HERE), "CUDA_VISIBLE_DEVICES": "0"} | env
    command = [sys.executable, "-m", module, *map(str, flags), *(["--port", str(port)] if port else [])]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    log = bytearray()
    reading = asyncio.create_task(_read(process, log))
    try:
        yield StandIn(process, port, log)
    finally:
        family = _family(process)
        kill_all(family)
        await process.wait()
        await reading


async def run(module: str, *flags: object, **env: str) -> tuple[int, str]:
    """The exit code and the last words of a stand-in that does not start."""
    async with standin(module, *flags, **env) as started:
        code = await started.exit()
    return code, started.log.decode()


def client(port: int) -> httpx.AsyncClient:
    # verify=False: loading certificates takes longer than a test.
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT, verify=False)


async def ask(router: Process, body: Mapping[str, object], path: str = CHAT) -> httpx.Response:
    """A request through the router."""
    async with client(router.port) as http:
        return await http.post(path, json=ASKED | body if path == CHAT else body)


def answer(response: httpx.Response) -> list[str]:
    """The texts of an answer, by choice, however it came."""
    assert response.status_code == 200, response.text
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [_text(choice, "message") for choice in response.json()["choices"]]
    texts: dict[int, str] = {}
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    for event in map(json.loads, events):
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + _text(choice, "delta")
    return [texts[index] for index in sorted(texts)]


async def read_cut(response: httpx.Response) -> list[str]:
    """The lines of a stream that must not end well."""
    lines: list[str] = []
    try:
        async for line in response.aiter_lines():
            lines.append(line)  # noqa: PERF401 (a comprehension would lose them)
    except httpx.RemoteProtocolError:
        return lines
    raise AssertionError(f"the stream ended as if it were whole: {lines}")


def _text(choice: dict[str, Any], chat: str) -> str:
    return choice[chat]["content"] if chat in choice else choice["text"]


def _family(process: asyncio.subprocess.Process) -> list[psutil.Process]:
    if process.returncode is not None:
        return []
    root = psutil.Process(process.pid)
    return [*root.children(recursive=True), root]


async def _read(process: asyncio.subprocess.Process, log: bytearray) -> None:
    assert process.stderr is not None
    while data := await process.stderr.read(65536):
        log += data
