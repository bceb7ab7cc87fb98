"""Starts the workers of a router, passes on what they tell each other, and replaces those that die."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence

from pdctl.errors import PdctlError
from pdctl.notify import Notifier
from pdctl.router.bus import Drained, Message, Ready, Registered, Removed, Wire, decode
from pdctl.router.listener import reserve
from pdctl.router.settings import Settings
from pdctl.router.shared import Shared, create
from pdctl.router.upstream import address
from pdctl.router.worker import Place

log = logging.getLogger(__name__)

_START = 30.0  # seconds for a worker to listen
_LAST_WORDS = 3.0  # beyond the time for draining, until a worker is killed
_SHORT_LIFE = 10.0  # seconds
_SHORT_LIVES = 5  # of a worker, one after the other, that end the router


class _Worker:
    """One worker's process, and the wire to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.wire: Wire | None = None
        self.ready = asyncio.Event()
        self.short_lives = 0


class Supervisor:
    """The first process of a router with several workers. It serves no request."""

    def __init__(self, settings: Settings, argv: Sequence[str]) -> None:
        self._settings = settings
        self._argv = argv
        self._known: dict[tuple[type[Message], str], bytes] = {}  # what a new worker has to be told
        self._port = 0
        self._memory = -1
        self._stopping = False

    async def run(self) -> None:
        """Serve until told to stop. PdctlError if workers do not start, or keep dying."""
        notifier, loop, stop = Notifier(), asyncio.get_running_loop(), asyncio.Event()
        workers = [_Worker(number) for number in range(self._settings.workers)]
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._pass_on_stop, stop, workers)
        loop.add_signal_handler(signal.SIGHUP, _signal, workers, signal.SIGHUP)
        with reserve(self._settings.host, self._settings.port) as reserved:
            self._port = reserved.getsockname()[1]
            keys = len(self._settings.api_keys.keys) if self._settings.api_keys is not None else 0
            self._memory = create(len(workers), keys)
            shared = Shared(self._memory, 0, len(workers), keys)
            lives = [loop.create_task(self._keep_alive(worker, workers, shared)) for worker in workers]
            try:
                await self._wait_until_ready(workers, lives)
                notifier.listening({"api": self._port})
                notifier.ready()
                kind = "splitwise" if self._settings.splitwise else "mixed"
                log.info("listening on %s:%d, %s, %d workers", self._settings.host, self._port, kind, len(workers))
                await self._until_over(stop, lives)
            finally:
                if not self._stopping:
                    self._pass_on_stop(stop, workers)
                await asyncio.wait(lives, timeout=self._settings.drain + _LAST_WORDS)
                _signal(workers, signal.SIGKILL)
                await asyncio.gather(*lives, return_exceptions=True)

    def _pass_on_stop(self, stop: asyncio.Event, workers: list[_Worker]) -> None:
        self._stopping = True
        _signal(workers, signal.SIGTERM)
        stop.set()

    async def _wait_until_ready(self, workers: list[_Worker], lives: list[asyncio.Task[None]]) -> None:
        ready = asyncio.create_task(_all_ready(workers))
        await asyncio.wait({ready, *lives}, timeout=_START, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return
        ready.cancel()
        for life in lives:
            if life.done():
                await life  # raises what ended it
        late = ", ".join(str(worker.number) for worker in workers if not worker.ready.is_set())
        raise PdctlError(f"waited {_START:g} s for workers of the router to listen: {late} do not")

    async def _until_over(self, stop: asyncio.Event, lives: list[asyncio.Task[None]]) -> None:
        told = asyncio.create_task(_wait(stop))
        await asyncio.wait({told, *lives}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        for life in lives:
            if life.done():
                await life

    async def _keep_alive(self, worker: _Worker, workers: list[_Worker], shared: Shared) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began = loop.time()
            code = await self._live(worker, workers)
            shared.clear(worker.number)
            if self._stopping:
                return
            log.error("worker %d died (exit code %d)", worker.number, code)
            worker.short_lives = worker.short_lives + 1 if loop.time() - began < _SHORT_LIFE else 0
            if worker.short_lives >= _SHORT_LIVES or not worker.ready.is_set():
                raise PdctlError(f"worker {worker.number} of the router keeps dying: see its log above")

    async def _live(self, worker: _Worker, workers: list[_Worker]) -> int:
        ours, theirs = socket.socketpair()
        place = Place(worker.number, self._port, theirs.fileno(), self._memory)
        with theirs:
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pdctl.router",
                *self._argv,
                env=place.environment,
                pass_fds=(theirs.fileno(), self._memory),
                start_new_session=False,
            )
        wire = worker.wire = Wire(lambda data: self._relay(data, worker, workers), lambda: None)
        await asyncio.get_running_loop().create_connection(lambda: wire, sock=ours)
        for message in tuple(self._known.values()):
            wire.send(message)
        code = await worker.process.wait()
        wire.close()
        return code

    def _relay(self, data: bytes, sender: _Worker, workers: list[_Worker]) -> None:
        message = decode(data)
        match message:
            case Ready():
                sender.ready.set()
                return
            case Registered(registration):
                self._known[Registered, address(registration.host_ip, registration.port)] = data
            case Drained(key):
                self._known[Drained, key] = data
            case Removed(key):
                self._known.pop((Registered, key), None)
                self._known.pop((Drained, key), None)
            case _:
                pass
        for worker in workers:
            if worker is not sender and worker.wire is not None:
                worker.wire.send(data)


async def _all_ready(workers: list[_Worker]) -> None:
    for worker in workers:
        await worker.ready.wait()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _signal(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        if worker.process is not None and worker.process.returncode is None:
            worker.process.send_signal(number)
