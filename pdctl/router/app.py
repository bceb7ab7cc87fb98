"""The router: its parts, its routes, its clock, and its end."""

import asyncio
import logging
import socket
from collections.abc import Callable

from pdctl.router.control import Control
from pdctl.router.exchange import Exchange
from pdctl.router.health import HealthChecks, probe
from pdctl.router.intake import accept
from pdctl.router.messages import Request
from pdctl.router.metrics import Metrics
from pdctl.router.protocols.base import LegProtocol
from pdctl.router.protocols.builtin import Builtin
from pdctl.router.protocols.mixed import Mixed
from pdctl.router.registry import Registry
from pdctl.router.selection import Selector
from pdctl.router.server import Client, Server, Work
from pdctl.router.settings import Settings

log = logging.getLogger(__name__)

Handler = Callable[[Request, Client], Work | None]

_LAST_WORDS = 1.0  # seconds for the last answers to leave, when time is over
_BACKLOG = 4096
_MODEL = b"/v1/models/"  # and a name


class Router:
    """One router on one listening socket. Create and use it in a running event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = asyncio.get_running_loop().time
        self.metrics = Metrics()
        self.registry = Registry(settings, probe)
        self.selector = Selector(self.registry, settings)
        self.protocol: LegProtocol = Builtin() if settings.splitwise else Mixed()
        self.health = HealthChecks(self.registry, settings.limits)
        self.server = Server(self._answer_safely, self._note_idle, settings.limits)
        self.in_flight: dict[str, Exchange] = {}
        self.stopping = False
        self._idle = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._routes = self._make_routes(Control(self))

    async def serve(self, sock: socket.socket) -> None:
        """Take connections on a bound socket."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Client(self.server), sock=sock, backlog=_BACKLOG)
        self._tick()

    async def drain(self) -> None:
        """Take no more requests, let those in flight end for a while, then cut the rest."""
        log.info("stopping: %d requests in flight", len(self.in_flight))
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        self.server.drain()
        if not await self._become_idle(self.settings.drain):
            log.warning("cutting %d requests after %g s", len(self.in_flight), self.settings.drain)
        for exchange in tuple(self.in_flight.values()):
            exchange.cut(503, "the router is stopping", "stopping")
        await self._become_idle(_LAST_WORDS)
        self.close()

    def close(self) -> None:
        """Close everything at once."""
        self.stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        self.health.close()
        self.server.close()
        for instance in self.registry.instances.values():
            instance.pool.close()

    def forget(self, exchange: Exchange) -> None:
        """Called by each exchange at its end."""
        if self.in_flight.get(exchange.id) is exchange:  # else: forgotten before, and another has its id now
            del self.in_flight[exchange.id]
        self._note_idle()

    def _make_routes(self, control: Control) -> dict[bytes, dict[bytes, Handler]]:
        def forward(request: Request, client: Client) -> Work | None:
            return accept(self, request, client)

        return {
            b"/v1/chat/completions": {b"POST": forward},
            b"/v1/completions": {b"POST": forward},
            b"/v1/abort_requests": {b"POST": control.abort},
            b"/v1/models": _readable(control.models),
            _MODEL: _readable(control.model),
            b"/register": {b"POST": control.register},
            b"/registered": _readable(control.registered),
            b"/registered_number": _readable(control.registered_number),
            b"/health": _readable(control.health),
            b"/health/live": _readable(control.alive),
            b"/metrics": _readable(control.metrics),
        }

    def _answer_safely(self, request: Request, client: Client) -> Work | None:
        try:
            return self._answer(request, client)
        except Exception:  # its connection, and whatever called it, must not be left half-way
            log.exception("a request to %s failed", request.path.decode("latin-1"))
            client.error(500, "internal error: see the router's log", code="internal_error")
            return None

    def _answer(self, request: Request, client: Client) -> Work | None:
        methods = self._routes.get(request.path)
        if methods is None:
            methods = self._routes[_MODEL] if request.path.startswith(_MODEL) else {}
        handler = methods.get(request.method)
        if handler is not None:
            return handler(request, client)
        path = request.path.decode("latin-1")
        allow = b"allow: %b\r\n" % b", ".join((*(methods or (b"GET", b"HEAD", b"POST")), b"OPTIONS"))
        if request.method == b"OPTIONS" and (methods or path == "*"):
            client.reply(204, b"", headers=allow)
        elif methods:
            client.error(405, f"{path} does not take {request.method.decode()}", headers=allow)
        else:
            client.error(404, f"there is nothing at {path}", code="not_found")
        return None

    def _tick(self) -> None:
        """Look at everything that has a time limit."""
        self._timer = asyncio.get_running_loop().call_later(self.settings.limits.tick, self._tick)
        now = self.now()
        for exchange in [e for e in self.in_flight.values() if e.deadline < now]:
            exchange.expire()
        self.server.check(now)
        self.registry.check(now)
        self.health.check(now)
        for instance in self.registry.instances.values():
            instance.pool.check(now)

    def _note_idle(self) -> None:
        if self.stopping and not self.in_flight and not self.server.clients:
            self._idle.set()

    async def _become_idle(self, seconds: float) -> bool:
        self._note_idle()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


def _readable(handler: Handler) -> dict[bytes, Handler]:
    return {b"GET": handler, b"HEAD": handler}
