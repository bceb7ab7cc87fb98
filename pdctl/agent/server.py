"""The agent proper: a supervisor behind a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, Optional, Set

from pdctl.agent.backoff import Restart
from pdctl.agent.connection import Connection
from pdctl.agent.fetch import fetch
from pdctl.agent.guardian import LISTENING
from pdctl.agent.logs import collect_logs
from pdctl.agent.paths import AgentError, read_secret, socket_path, write_json, write_secret
from pdctl.agent.port_book import PortBook
from pdctl.agent.protocol import VERSION
from pdctl.agent.supervision import Look
from pdctl.agent.supervisor import Supervisor

LOOK_S = 1.0  # how often the socket is looked for

log = logging.getLogger(__name__)


class AgentServer:
    """Answers requests until it was told to shut down."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._supervisor = Supervisor(folder, run_id)
        self._tasks: Set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._guardian = os.getppid()
        self._path = Path()
        self._methods: Dict[str, Callable[..., Awaitable[Any]]] = {
            "hello": self._hello,
            "start": self._start,
            "supervise": self._supervise,
            "list": self._list,
            "stop": self._supervisor.stop,
            "logs": self._logs,
            "keep": self._keep,
            "kept": self._kept,
            "fetch": self._fetch,
            "reserve": self._reserve,
            "shutdown": self._shutdown,
        }

    async def serve(self, tell: Callable[[str], None]) -> None:
        """Listen, and return after a shutdown. ``tell`` gets LISTENING, or the reason why it cannot listen."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._supervisor.reap)
        loop.add_signal_handler(signal.SIGTERM, self._terminated)
        try:
            listener = await self._listen()
        except (AgentError, OSError) as error:
            tell(str(error))
            raise
        tell(LISTENING)
        self._spawn(self._supervisor.sample_forever())
        self._spawn(self._keep_listening(listener))
        await self._closed.wait()
        socket_path(self._run_id).unlink(missing_ok=True)
        (self._folder / "agent.json").unlink(missing_ok=True)

    async def _listen(self) -> asyncio.AbstractServer:
        path = socket_path(self._run_id)
        listener = await asyncio.start_unix_server(self._connected, str(path))
        description = {"run_id": self._run_id, "pid": os.getpid(), "guardian_pid": self._guardian, "socket": str(path)}
        write_json(self._folder / "agent.json", description)
        self._path = path
        return listener

    async def _keep_listening(self, listener: asyncio.AbstractServer) -> None:
        """A runtime folder is removed when its user has logged out everywhere: listen elsewhere then."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._path.exists():
                continue
            log.warning("the socket %s is gone: making another", self._path)
            listener.close()
            try:
                listener = await self._listen()
            except (AgentError, OSError) as error:
                log.error("cannot listen: %s", error)

    def _terminated(self) -> None:
        """By hand, or because the guardian died: end everything, then the agent."""
        log.warning("SIGTERM: shutting down")
        self._spawn(self._shut_down_and_close())

    async def _shut_down_and_close(self) -> None:
        try:
            await self._supervisor.shutdown()
        except AgentError as error:
            log.error("%s", error)
        self._closed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(Connection(reader, writer, self._methods, self._supervisor, self._spawn).run())

    async def _hello(self) -> Dict[str, Any]:
        return {
            "version": VERSION,
            "run_id": self._run_id,
            "pid": os.getpid(),
            "python": sys.version.split()[0],
            "folder": str(self._folder),
        }

    async def _start(
        self, name: str, argv: List[str], env: Dict[str, str], cwd: Optional[str] = None, grace: float = 10.0
    ) -> Dict[str, Any]:
        return self._supervisor.start(name, argv, env, cwd, grace)

    async def _supervise(
        self,
        name: str,
        restart: Dict[str, Any],
        argv: Optional[List[str]] = None,
        env: Optional[Dict[str, str]] = None,
        probe_url: Optional[str] = None,
        ready_s: Optional[float] = None,
        serves: bool = True,
    ) -> Dict[str, Any]:
        look = Look(probe_url, ready_s, serves)
        return self._supervisor.supervise(name, Restart(**restart), look, argv=argv, env=env)

    async def _list(self) -> List[Dict[str, Any]]:
        return self._supervisor.snapshots()

    async def _logs(self, names: Optional[List[str]] = None, tail: int = 100) -> Dict[str, Any]:
        lines = await asyncio.to_thread(collect_logs, self._folder, names, tail)
        return {"lines": lines}

    async def _keep(self, name: str, text: str) -> None:
        """Write a file of the agent's folder, for this user's eyes only; it is removed when the agent ends."""
        write_secret(self._folder, name, text)

    async def _kept(self, name: str) -> str:
        return read_secret(self._folder, name)

    async def _fetch(
        self, method: str, url: str, headers: Dict[str, str], body: str = "", timeout: float = 30.0
    ) -> Dict[str, Any]:
        return await asyncio.to_thread(fetch, method, url, headers, body, timeout)

    async def _reserve(self, ports: List[int]) -> Dict[int, str]:
        """Make these the run's ports, and no others; answers, instead of that, which of them others have."""
        return await asyncio.to_thread(PortBook().reserve, self._run_id, ports)

    async def _shutdown(self, grace: Optional[float] = None) -> None:
        """Afterwards the agent ends: the client sees the connection close."""
        try:
            await self._supervisor.shutdown(grace)
        finally:
            asyncio.get_running_loop().call_soon(self._closed.set)


def run_agent(folder: Path, run_id: str, tell: Callable[[str], None]) -> None:
    """Serve until shut down. To be called in the main thread of a process without others."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s")
    log.info("agent %d of run %s", os.getpid(), run_id)
    asyncio.run(_serve(folder, run_id, tell))


async def _serve(folder: Path, run_id: str, tell: Callable[[str], None]) -> None:
    await AgentServer(folder, run_id).serve(tell)
