"""Starts the workers of a router, passes on what they tell each other, and replaces those that die."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from pdctl.errors import ExitCode, PdctlError, ProcessDiedError, StepTimeoutError
from pdctl.notify import Notifier
from pdctl.router.listener import reserve
from pdctl.router.settings import Settings
from pdctl.router.upstream.pool import address
from pdctl.router.workers.bus import Begin, Failed, Message, Ready, Reopen, Stop, Tell, Wire, decode, encode
from pdctl.router.workers.shared import Shared, create
from pdctl.router.workers.switchboard import Switchboard
from pdctl.router.workers.worker import Place

log = logging.getLogger(__name__)

_START = 30.0  # seconds for all workers to listen
_LAST_WORDS = 3.0  # beyond the time for draining, until a worker is killed
_SHORT_LIFE = 10.0  # seconds
_SHORT_LIVES = 5  # of a worker, one after the other, that end the router
_PAUSE = 0.1  # seconds after a worker's death until the next is started, times its short lives
_PING = 5.0  # seconds between two questions whether a worker lives
_SILENCES = 6  # questions without an answer after which it is killed


class _Worker:
    """One worker's process, and the wire to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.wire: Wire | None = None
        self.joined = False
        self.ready = False
        self.failure: PdctlError | None = None  # why it cannot start
        self.short_lives = 0
        self.silences = 0

    def tell(self, message: bytes) -> None:
        """Send it an encoded message."""
        if self.wire is not None:
            self.wire.send(message)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()  # does nothing to one that has been waited for


class Supervisor:
    """The first process of a router with several workers. It serves no request."""

    def __init__(self, settings: Settings, argv: Sequence[str], *, debug: bool = False) -> None:
        """`argv` is for those who look at the processes: workers are told the settings."""
        self._settings = settings
        self._argv = argv
        self._begin = encode(Begin(settings, debug))
        self._workers = [_Worker(number) for number in range(settings.workers)]
        self._loop = asyncio.get_running_loop()
        self._all_ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._switchboard = Switchboard(
            settings.heartbeat_timeout, (address(fixed.host, fixed.port) for fixed in settings.fixed)
        )
        self._keys = len(settings.api_keys.keys) if settings.api_keys is not None else 0
        self._memory = create(settings.workers, self._keys)
        self._shared = Shared(self._memory, 0, settings.workers, self._keys)

    async def run(self) -> None:
        """Serve until told to stop. PdctlError if workers do not start, or keep dying."""
        notifier, loop = Notifier(), self._loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        if self._settings.access_log is not None:
            loop.add_signal_handler(signal.SIGHUP, self._tell_all, Reopen())
        with reserve(self._settings.host, self._settings.port) as reserved:
            port = reserved.getsockname()[1]
            lives = [loop.create_task(self._keep_alive(worker, port)) for worker in self._workers]
            others = [loop.create_task(self._announce(notifier, port)), loop.create_task(self._watch())]
            try:
                await asyncio.wait((*lives, others[0]), return_when=asyncio.FIRST_EXCEPTION)
            finally:
                self._order_stop(at_once=False)
                await asyncio.gather(*lives, return_exceptions=True)
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        for task in (*lives, others[0]):
            if not task.cancelled():
                task.result()  # raises what ended the router

    def _told_to_stop(self) -> None:
        self._order_stop(at_once=self._stop.is_set())

    def _order_stop(self, *, at_once: bool) -> None:
        if self._stop.is_set() and not at_once:
            return
        self._stop.set()
        self._all_ready.set()  # nobody needs to wait for it any more
        self._tell_all(Stop(at_once))
        self._loop.call_later(_LAST_WORDS + (0 if at_once else self._settings.drain), self._kill_all)

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                log.warning("worker %d does not end: killing it", worker.number)
                worker.kill()

    def _tell_all(self, message: Message) -> None:
        data = encode(message)
        for worker in self._workers:
            worker.tell(data)

    async def _announce(self, notifier: Notifier, port: int) -> None:
        """Say that the router listens, when all of its workers do."""
        try:
            await asyncio.wait_for(self._all_ready.wait(), _START)
        except TimeoutError:
            late = ", ".join(str(worker.number) for worker in self._workers if not worker.ready)
            raise StepTimeoutError(f"waited {_START:g} s for the router's workers to listen: {late} did not") from None
        if self._stop.is_set():
            return
        notifier.listening({"api": port})
        notifier.ready()
        kind = "splitwise" if self._settings.splitwise else "mixed"
        log.info("listening on %s:%d, %s, %d workers", self._settings.host, port, kind, len(self._workers))

    async def _watch(self) -> None:
        """Kill workers that do not answer: the kernel goes on giving them connections."""
        question = encode(Tell(0, False))
        while True:
            await asyncio.sleep(_PING)
            self._switchboard.prune()
            for worker in self._workers:
                if worker.silences >= _SILENCES:
                    log.error("worker %d has not answered for %g s: killing it", worker.number, _PING * _SILENCES)
                    worker.kill()
                worker.silences += 1
                worker.tell(question)

    async def _keep_alive(self, worker: _Worker, port: int) -> None:
        while not self._stop.is_set():
            began = self._loop.time()
            code = await self._live(worker, port)
            self._shared.clear(worker.number)
            self._switchboard.died(worker)
            if self._stop.is_set():
                return
            worker.short_lives = worker.short_lives + 1 if self._loop.time() - began < _SHORT_LIFE else 0
            if worker.failure is not None and (not worker.ready or worker.short_lives >= _SHORT_LIVES):
                raise worker.failure
            if worker.short_lives >= _SHORT_LIVES:
                raise ProcessDiedError(
                    f"worker {worker.number} of the router has died {_SHORT_LIVES} times within {_SHORT_LIFE:g} s of "
                    f"its start, now {_ended(code)}: see its log above"
                )
            log.error("worker %d has died (%s): starting another", worker.number, worker.failure or _ended(code))
            await self._pause(_PAUSE * worker.short_lives)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    async def _live(self, worker: _Worker, port: int) -> int:
        """One worker's life; its exit code."""
        worker.failure, worker.silences = None, 0
        ours, theirs = socket.socketpair()
        with theirs:
            place = Place(worker.number, port, theirs.fileno(), self._memory)
            process = worker.process = self._spawn(place)
        wire = Wire(lambda data: self._take(worker, data), lambda reason: self._wire_lost(worker, reason))
        await self._loop.create_connection(lambda: wire, sock=ours)
        worker.wire = wire
        wire.send(self._begin)
        if self._stop.is_set():
            wire.send(encode(Stop(False)))
        code = await _exit_code(process)
        worker.wire = None
        wire.close()
        return code

    def _spawn(self, place: Place) -> subprocess.Popen[bytes]:
        """Not by the event loop, which resets what signals do. Blocks for milliseconds."""
        flags = ["-P"] if sys.flags.safe_path else []
        return subprocess.Popen(
            [sys.executable, *flags, "-m", "pdctl.router", *self._argv],
            env=place.environment,
            pass_fds=(place.bus, place.memory),
            preexec_fn=_leave_to_supervisor,
        )

    def _take(self, worker: _Worker, data: bytes) -> None:
        worker.silences = 0
        message = decode(data)
        match message:
            case Ready():
                worker.ready = True
                if all(each.ready for each in self._workers):
                    self._all_ready.set()
            case Failed(text, exit_code):
                worker.failure = PdctlError(text)
                worker.failure.exit_code = ExitCode(exit_code)
            case _:
                self._switchboard.take(worker, message, data, self._workers)

    def _wire_lost(self, worker: _Worker, reason: str) -> None:
        if reason:
            log.error("worker %d: %s: killing it", worker.number, reason)
            worker.kill()


def _leave_to_supervisor() -> None:
    """A terminal sends these signals to every process, but the supervisor says what they mean for a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    fd = os.pidfd_open(process.pid)
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return process.wait()


def _ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
