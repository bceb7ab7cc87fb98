"""Routers that are processes of their own, with one worker or several."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from processes import kill_all
from router_mocks import CHAT, LIMIT, PROMPT, MockEngine, until


@dataclass
class Process:
    """A router of its own."""

    process: asyncio.subprocess.Process
    notices: asyncio.StreamReader
    log: str = ""
    port: int = 0
    scheme: str = "http"

    async def notice(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT):
            return json.loads(await self.notices.readline())

    async def wait_for_log(self, text: str) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT):
            while text not in self.log:
                line = await self.process.stderr.readline()
                assert line, f"the router ended without saying {text!r}:\n{self.log}"
                self.log += line.decode()

    async def exit(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT):
            self.log += (await self.process.stderr.read()).decode()
            return await self.process.wait()

    async def register(self, role: str, mock: MockEngine, token: str = "none", **fields: object) -> httpx.Response:
        payload = {"role": role, "host_ip": "127.0.0.1", "port": mock.port, "transfer_protocol": ["ipc"]} | fields
        async with self.http() as http:
            return await http.post("/register", json=payload, headers={"Authorization": f"Bearer {token}"})

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"{self.scheme}://127.0.0.1:{self.port}", timeout=LIMIT, verify=False)

    def kill(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the oldest first."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda child: (child.create_time(), child.pid))

    async def worker(self, number: int, *, other_than: int = 0) -> psutil.Process:
        """The process that is a worker now, by its number; another one than a dead one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [child for child in self.workers() if child.pid != other_than and _number(child) == number]
            return bool(found)

        await until(look, f"worker {number}")
        return found[0]


def _number(child: psutil.Process) -> int | None:
    try:
        place = child.environ().get("PDCTL_ROUTER_WORKER")
    except psutil.Error:
        return None
    return None if place is None else json.loads(place)["worker"]


def listening(router: Process) -> list[psutil.Process]:
    """The workers that take connections."""
    return [worker for worker in router.workers() if listens(worker)]


def listens(worker: psutil.Process) -> bool:
    try:
        return any(c.status == psutil.CONN_LISTEN for c in worker.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


@dataclass
class Connections:
    """One kept-alive connection to each worker: the kernel decides, so many are opened to find them."""

    clients: dict[int, httpx.AsyncClient]  # by the worker's pid

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.clients.values())

    def __getitem__(self, pid: int) -> httpx.AsyncClient:
        return self.clients[pid]

    async def post(self, pid: int, **headers: str) -> httpx.Response:
        """A completion request at one worker."""
        return await self.clients[pid].post(CHAT, json=PROMPT, headers=headers)


@asynccontextmanager
async def to_each_worker(router: Process) -> AsyncIterator[Connections]:
    """A client for each worker. Which one it is talks to is seen by the worker's end of the connection."""
    found: dict[int, httpx.AsyncClient] = {}
    async with contextlib.AsyncExitStack() as stack:
        await until(lambda: len(listening(router)) == len(router.workers()), "all workers to listen")
        pids = {worker.pid for worker in router.workers()}
        async with asyncio.timeout(LIMIT):
            while pids - found.keys():
                http = await stack.enter_async_context(router.http())
                async with http.stream("GET", "/health/live") as response:
                    await response.aread()
                    stream = response.extensions["network_stream"]
                    port = stream.get_extra_info("client_addr")[1]
                found.setdefault(_pid_of_peer(router, port), http)
        yield Connections(found)


def _pid_of_peer(router: Process, port: int) -> int:
    for worker in router.workers():
        if any(c.raddr and c.raddr.port == port and c.laddr.port == router.port for c in worker.net_connections("tcp")):
            return worker.pid
    raise AssertionError(f"no worker has the connection from port {port}")


@asynccontextmanager
async def process(*arguments: str, env: dict[str, str] | None = None, session: bool = False) -> AsyncIterator[Process]:
    """A router that is starting; `session`: in a process group of its own, as one in a terminal is."""
    receiving, sending = os.pipe()
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pdctl.router", *arguments,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PDCTL_NOTIFY_FD": str(sending)} | (env or {}),
        pass_fds=(sending,),
        start_new_session=session,
    )  # fmt: skip
    os.close(sending)
    notices = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(notices), os.fdopen(receiving))
    workers: list[psutil.Process] = []
    try:
        yield Process(started, notices)
    finally:
        pipe.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(started.pid).children()
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        kill_all(workers)
        await started.wait()


@asynccontextmanager
async def ready(*arguments: str, env: dict[str, str] | None = None, session: bool = False) -> AsyncIterator[Process]:
    """A router that listens."""
    async with process(*arguments, env=env, session=session) as router:
        listening = await router.notice()
        assert listening["event"] == "listening", listening
        router.port = listening["ports"]["api"]
        assert await router.notice() == {"event": "ready"}
        if "--ssl-certfile" in arguments:
            router.scheme = "https"
        yield router
