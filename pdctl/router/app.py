"""The router: its parts, its clock, and its end."""

import asyncio
import logging
import socket
import time

from pdctl.router.access.api_keys import UsageTable, size_needed
from pdctl.router.access.tls import server_context
from pdctl.router.client.server import Client, Server
from pdctl.router.engines.health import HealthChecks, probe
from pdctl.router.engines.instance import Instance, Registration
from pdctl.router.engines.kv_events import KvEvents
from pdctl.router.engines.load import Load
from pdctl.router.engines.load_reports import LoadReports
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.engines.registry import Registry
from pdctl.router.figures.access_log import AccessLog
from pdctl.router.figures.metrics import InstanceFigures, Metrics, ModelNames
from pdctl.router.figures.tracing import make_tracer
from pdctl.router.requests.admission import Admission
from pdctl.router.requests.exchange import Exchange
from pdctl.router.requests.releases import Releases
from pdctl.router.requests.report import Reports
from pdctl.router.requests.selection import Selector
from pdctl.router.routes import Routes
from pdctl.router.settings import FixedInstance, Settings
from pdctl.router.workers.bus import Aborted, Bus, Drained, Found, Message, Registered, Removed, Reopen
from pdctl.router.workers.shared import Shared

log = logging.getLogger(__name__)

_LAST_WORDS = 1.0  # seconds for the last answers to leave, when time is over
_BACKLOG = 4096


class Router:
    """One process that routes, alone or one of several workers. Create and use it in a running event loop."""

    def __init__(self, settings: Settings, shared: Shared | None = None, bus: Bus | None = None) -> None:
        """PdctlError if the access log, the certificate or the collector of traces cannot be used."""
        self.settings = settings
        self.now = time.monotonic  # as the event loop's time, which uvloop tells in whole milliseconds
        self.bus = bus or Bus()
        self.metrics = Metrics()
        self.models = ModelNames()
        self.registry = Registry(settings, probe, shared.load_of if shared is not None else lambda _: Load())
        self.index = PrefixIndex()
        self.selector = Selector(self.registry, settings, self.index, self.metrics)
        self.admission = Admission(settings.queue_size)
        self.health = HealthChecks(self.registry, settings.limits, self._tell_found)
        self.server = Server(Routes(self).answer, self._note_idle, settings.limits)
        self.usage = _usage(settings, shared, self.bus.worker)
        self._tls = server_context(settings.certificate, settings.private_key)
        self.access_log = AccessLog(settings.access_log) if settings.access_log is not None else None
        self.reports = Reports(self)
        self.releases = Releases(self.metrics, settings.limits.prefill_linger)
        self.tracing = make_tracer(settings.otlp_endpoint)
        self.in_flight: dict[str, Exchange] = {}
        self.stopping = False
        self._kv_events = KvEvents(self.index, settings.token)
        self._load_reports = LoadReports() if "metrics_score" in settings.policies else None
        self._idle = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.registry.on_change = self._engines_changed
        self.registry.on_gone = lambda instance: self.metrics.forget(instance.key)
        self.registry.on_hung = self._engine_hangs
        self.bus.receive = self._take
        self.bus.figures = lambda: self.metrics.snapshot(self.figures())
        for fixed in settings.fixed:
            self.registry.add_fixed(_registration(fixed, settings.protocol))

    async def prepare(self) -> None:
        """Find out which of the engines that are named on the command line get requests: at most a probe's time."""
        await self.health.probe_all()

    async def serve(self, sock: socket.socket) -> None:
        """Take connections on a bound socket."""
        loop, limits = asyncio.get_running_loop(), self.settings.limits
        self._listener = await loop.create_server(
            lambda: Client(self.server),
            sock=sock,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else limits.head_timeout,
            ssl_shutdown_timeout=None if self._tls is None else limits.linger,
        )
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
        self._kv_events.close()
        if self._load_reports is not None:
            self._load_reports.close()
        self.server.close()
        self.admission.close()
        self.releases.close()
        for instance in self.registry.instances.values():
            instance.pool.close()
        self.reports.tell()
        if self.access_log is not None:
            self.access_log.close()
        if self.tracing is not None:
            self.tracing.close()

    def forget(self, exchange: Exchange) -> None:
        """Called by each exchange at its end."""
        if self.in_flight.get(exchange.id) is exchange:  # else: forgotten before, and another has its id now
            del self.in_flight[exchange.id]
            self.admission.hasten()
        if self.stopping:
            self._note_idle()

    def figures(self) -> list[InstanceFigures]:
        """What is known of the engines; sets the gauges, too."""
        self.reports.tell()
        metrics = self.metrics
        metrics.requests_in_flight.value = len(self.in_flight)
        metrics.client_connections.value = len(self.server.clients)
        metrics.queue_depth.clear()
        for model, depth in self.admission.depths.items():
            metrics.queue_depth[model] = depth
        if self.access_log is not None:
            metrics.access_log_dropped.value = self.access_log.dropped
        return [_figures(instance) for instance in self.registry.instances.values()]

    def abort(self, ids: list[str]) -> None:
        """Let requests be tried no more, all if none is named; their engines are told by the caller."""
        for exchange in [self.in_flight[i] for i in ids if i in self.in_flight] if ids else [*self.in_flight.values()]:
            exchange.abort()

    def _tick(self) -> None:
        """Look at everything that has a time limit."""
        self._timer = asyncio.get_running_loop().call_later(self.settings.limits.tick, self._tick)
        now = self.now()
        for exchange in tuple(self.in_flight.values()):
            exchange.check(now)
        self.server.check(now)
        self.registry.check(now)
        self.health.check(now)
        instances = self.registry.instances.values()
        self._kv_events.check(now, instances)
        if self._load_reports is not None:
            self._load_reports.check(now, instances)
        for instance in instances:
            instance.pool.check(now)

    def _engines_changed(self) -> None:
        for model in self.registry.groups:
            self.models.add(model)
        self.admission.wake()

    def _engine_hangs(self, instance: Instance, reason: str) -> None:
        for exchange in tuple(self.in_flight.values()):
            exchange.engine_hangs(instance.key, reason)

    def _tell_found(self, instance: Instance) -> None:
        self.bus.publish(Found(instance.key, instance.engine_id, instance.served))

    def _take(self, message: Message) -> None:
        """Do as another worker has done."""
        match message:
            case Registered(registration, engine_id, news, served):
                self.registry.admit_told(registration, engine_id, served, news=news)
            case Found(key, engine_id, served):
                self.registry.bring_in_told(key, engine_id, served)
            case Aborted(ids):
                self.abort(ids)
            case Drained(key, draining):
                instance = self.registry.instances.get(key)
                if instance is not None:
                    self.registry.drain(instance, draining=draining)
            case Removed(key):
                self.registry.keep_out(key)
            case Reopen():
                if self.access_log is not None:
                    self.access_log.reopen()
            case _:
                log.error("a message that is no worker's: %s", type(message).__name__)

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


def _figures(instance: Instance) -> InstanceFigures:
    pool, load = instance.pool, instance.load
    return InstanceFigures(
        role=instance.registration.role,
        instance=instance.key,
        up=instance.live,
        paused=instance.registration.is_paused,
        draining=instance.draining,
        breaker_state=int(instance.breaker.state),
        requests_in_flight=load.requests,
        tokens_in_flight=load.tokens,
        requests=load.assigned,
        connections=len(pool.open),
        idle_connections=pool.idle,
        stale_retries=pool.stale_retries,
        failures=instance.failed,
    )


def _registration(fixed: FixedInstance, protocol: str) -> Registration:
    return Registration(
        role=fixed.role, host_ip=fixed.host, port=fixed.port, bootstrap_port=fixed.bootstrap_port, protocol=protocol
    )


def _usage(settings: Settings, shared: Shared | None, worker: int) -> UsageTable | None:
    if settings.api_keys is None:
        return None
    keys = len(settings.api_keys.keys)
    memory = shared.usage if shared is not None else memoryview(bytearray(size_needed(1, keys)))
    return UsageTable(memory, worker, settings.workers if shared is not None else 1, keys)
