"""A process that routes: alone, or as one of the workers of a supervisor."""

import asyncio
import logging
import os
import signal
import socket
from typing import Self

import msgspec

from pdctl.notify import Notifier
from pdctl.router.app import Router
from pdctl.router.bus import Bus, Ready
from pdctl.router.listener import bind, share
from pdctl.router.settings import Settings
from pdctl.router.shared import Shared

log = logging.getLogger(__name__)

_PLACE = "PDCTL_ROUTER_WORKER"


class Place(msgspec.Struct, frozen=True):
    """What a supervisor gives a worker."""

    worker: int  # its number
    port: int
    bus: int  # a file descriptor
    memory: int  # another

    @classmethod
    def inherited(cls) -> Self | None:
        """This process's place; None if it has been started by hand."""
        text = os.environ.pop(_PLACE, None)
        return None if text is None else msgspec.json.decode(text, type=cls)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker."""
        return os.environ | {_PLACE: msgspec.json.encode(self).decode()}


async def serve_alone(settings: Settings) -> None:
    """Be the only process of a router, until told to stop."""
    signals, notifier, router = _Signals(), Notifier(), Router(settings)
    sock = bind(settings.host, settings.port)
    port = sock.getsockname()[1]
    await router.serve(sock)
    notifier.listening({"api": port})
    notifier.ready()
    log.info("listening on %s:%d, %s", settings.host, port, "splitwise" if settings.splitwise else "mixed")
    await _run(router, signals)


async def serve_as_worker(settings: Settings, place: Place) -> None:
    """Be one of several processes, until told to stop, or until the supervisor is gone."""
    signals, bus = _Signals(worker=True), Bus(place.worker, settings.workers)
    keys = len(settings.api_keys.keys) if settings.api_keys is not None else 0
    router = Router(settings, Shared(place.memory, place.worker, settings.workers, keys), bus)
    sock = share(settings.host, place.port)
    await bus.connect(socket.socket(fileno=place.bus), signals.stop)
    await router.serve(sock)
    bus.publish(Ready())
    await _run(router, signals)
    bus.close()


class _Signals:
    """SIGTERM and SIGINT, one after the other; SIGHUP says that the access log has been moved away."""

    def __init__(self, *, worker: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._stops: asyncio.Queue[None] = asyncio.Queue()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        if worker:  # a terminal sends SIGINT to all processes, but the supervisor passes it on
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        else:
            loop.add_signal_handler(signal.SIGINT, self.stop)

    def stop(self) -> None:
        """Do as after a signal."""
        self._stops.put_nowait(None)

    async def wait(self) -> None:
        """Wait for the next."""
        await self._stops.get()


async def _run(router: Router, signals: _Signals) -> None:
    """Serve until told to stop, then drain; being told again ends it at once."""
    loop = asyncio.get_running_loop()
    if router.access_log is not None:
        loop.add_signal_handler(signal.SIGHUP, router.access_log.reopen)
    await signals.wait()
    draining = loop.create_task(router.drain())
    again = loop.create_task(signals.wait())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopping at once: %d requests are cut", len(router.in_flight))
    draining.cancel()
    again.cancel()
    router.close()
