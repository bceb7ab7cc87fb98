"""A process that routes: alone, or as one of the workers of a supervisor."""

import asyncio
import logging
import os
import signal
import socket
from typing import Self

import msgspec

from pdctl.errors import PdctlError
from pdctl.notify import NOTIFY_FD, Notifier
from pdctl.router.app import Router
from pdctl.router.listener import bind, share
from pdctl.router.settings import Settings
from pdctl.router.workers.bus import Begin, Bus, Failed, Ready
from pdctl.router.workers.shared import Shared

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
        """This process's place; None if it has been started by hand. PdctlError if there is none such."""
        text = os.environ.pop(_PLACE, None)
        try:
            return None if text is None else msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError:
            raise PdctlError(f"{_PLACE} is set for a router's own processes only: unset it") from None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker."""
        inherited = {name: value for name, value in os.environ.items() if name != NOTIFY_FD}
        return inherited | {_PLACE: msgspec.json.encode(self).decode()}


class Orders:
    """What a process is told to do at its end."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()  # take no more requests, and end when those in flight have
        self.at_once = asyncio.Event()  # cut them

    def given(self, at_once: bool) -> None:
        """Stop, perhaps at once."""
        self.stop.set()
        if at_once:
            self.at_once.set()

    def repeated(self) -> None:
        """Stop; when this is said again, at once."""
        (self.at_once if self.stop.is_set() else self.stop).set()


async def serve_alone(settings: Settings) -> None:
    """Be the only process of a router, until told to stop."""
    loop, orders, notifier = asyncio.get_running_loop(), Orders(), Notifier()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, orders.repeated)
    router = Router(settings)
    if router.access_log is not None:
        loop.add_signal_handler(signal.SIGHUP, router.access_log.reopen)
    sock = bind(settings.host, settings.port)
    port = sock.getsockname()[1]
    await router.prepare()
    await router.serve(sock)
    notifier.listening({"api": port})
    notifier.ready()
    log.info("listening on %s:%d, %s", settings.host, port, "splitwise" if settings.splitwise else "mixed")
    await _run(router, orders)


async def serve_as_worker(place: Place) -> None:
    """Be one of several processes, until told to stop, or until the supervisor is gone.

    SIGTERM comes from the supervisor's own killer to all of its group; once or twice is the same to a worker, since
    the supervisor says what is meant. SIGINT and SIGHUP are ignored: see the supervisor.
    """
    orders, bus = Orders(), Bus(place.worker)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, orders.stop.set)
    begin = await bus.connect(socket.socket(fileno=place.bus), orders.given)
    try:
        await _serve_with(bus, orders, place, begin)
    except PdctlError as error:
        bus.publish(Failed(str(error), error.exit_code))
    await bus.leave()


async def _serve_with(bus: Bus, orders: Orders, place: Place, begin: Begin) -> None:
    settings = begin.settings
    if begin.debug:
        logging.getLogger("pdctl").setLevel(logging.DEBUG)
    keys = len(settings.api_keys.keys) if settings.api_keys is not None else 0
    router = Router(settings, Shared(place.memory, place.worker, settings.workers, keys), bus)
    await bus.join()
    await router.prepare()
    if not orders.stop.is_set():
        await router.serve(share(settings.host, place.port))
        bus.publish(Ready())
    await _run(router, orders)


async def _run(router: Router, orders: Orders) -> None:
    """Serve until told to stop, then drain, or end at once."""
    loop = asyncio.get_running_loop()
    await orders.stop.wait()
    draining = loop.create_task(router.drain())
    at_once = loop.create_task(_wait(orders.at_once))
    await asyncio.wait((draining, at_once), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopping at once: %d requests are cut", len(router.in_flight))
    draining.cancel()
    at_once.cancel()
    router.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
