"""Asks engines for their load, for the policy metrics_score: GET /metrics of each, once a tick."""

import asyncio
import logging
from collections.abc import Collection
from math import isfinite, nan
from typing import NamedTuple

from pdctl.router.engines.instance import Instance, Reported
from pdctl.router.upstream.fetch import FetchError, fetch
from pdctl.router.upstream.pool import Pool

log = logging.getLogger(__name__)

_TIMEOUT = 3.0  # for an answer
_MAX_AGE = 10.0  # seconds after which a report counts no more

_RUNNING = frozenset(
    {
        b"pdctl:num_requests_running",
        b"vllm:num_requests_running",
        b"sglang:num_running_reqs",
        b"fastdeploy:num_requests_running",
    }
)
_WAITING = frozenset(
    {
        b"pdctl:num_requests_waiting",
        b"vllm:num_requests_waiting",
        b"fastdeploy:num_requests_waiting",
        b"sglang:num_queue_reqs",
        b"sglang:num_prefill_bootstrap_queue_reqs",  # with prefill and decode apart, these wait besides
        b"sglang:num_prefill_prealloc_queue_reqs",  # the same in other versions
        b"sglang:num_decode_prealloc_queue_reqs",
        b"sglang:num_decode_transfer_queue_reqs",
    }
)
_NAMES = tuple(_RUNNING | _WAITING)


class LoadReports:
    """Keeps `instance.reported` of live instances up to date: None where nothing recent is known."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pools: dict[str, Pool] = {}  # of metrics ports
        self._silent: set[str] = set()  # whose trouble has been logged

    def check(self, now: float, instances: Collection[Instance]) -> None:
        """Drop old reports, ask every live instance that is not being asked. Called once a tick."""
        self._forget_all_but({instance.key for instance in instances})
        for instance in instances:
            if instance.reported is not None and now - instance.reported.at > _MAX_AGE:
                instance.reported = None
            if instance.live and instance.key not in self._tasks:
                self._ask_soon(instance, now)

    def close(self) -> None:
        """Stop asking."""
        self._forget_all_but(set())

    def _ask_soon(self, instance: Instance, now: float) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(instance, now))
        self._tasks[instance.key] = task
        task.add_done_callback(lambda _: self._tasks.pop(instance.key))

    async def _ask(self, instance: Instance, now: float) -> None:
        in_flight = instance.load.requests  # before: what is assigned meanwhile must not be missed
        try:
            answer = await fetch(self._pool(instance), b"GET", b"/metrics", timeout=_TIMEOUT)
            if answer.status != 200:
                raise FetchError(f"/metrics answers {answer.status}")
            load = parse_load(answer.body)
        except (FetchError, ValueError) as error:
            if instance.key not in self._silent:
                self._silent.add(instance.key)
                log.warning("no load report of %s: %s; its requests in flight count instead", instance.name, error)
            return
        self._silent.discard(instance.key)
        instance.reported = Reported(load.running, load.waiting, in_flight, now)

    def _pool(self, instance: Instance) -> Pool:
        """The instance's connections, or some of its metrics port's."""
        host, port = instance.registration.host_ip, instance.registration.metrics_port
        if port in (0, instance.registration.port):
            return instance.pool
        pool = self._pools.get(instance.key)
        if pool is None or pool.port != port:
            if pool is not None:
                pool.retire()
            pool = self._pools[instance.key] = Pool(host, port, instance.pool.limits)
        return pool

    def _forget_all_but(self, keys: set[str]) -> None:
        self._silent &= keys
        for key in self._tasks.keys() - keys:
            self._tasks[key].cancel()
        for key in self._pools.keys() - keys:
            self._pools.pop(key).retire()


class ParsedLoad(NamedTuple):
    """An engine's load at one moment."""

    running: float  # requests
    waiting: float  # requests


def parse_load(text: bytes) -> ParsedLoad:
    """Read Prometheus' text format; several samples (ranks, models) are added up. ValueError says what is missing."""
    running: list[float] = []
    waiting: list[float] = []
    for line in text.split(b"\n"):
        if not line.startswith(_NAMES):
            continue
        name, value = _sample(line)
        if name in _RUNNING:
            running.append(value)
        elif name in _WAITING:
            waiting.append(value)
    if not running or not waiting:
        raise ValueError(f"/metrics tells of no {'running' if not running else 'waiting'} requests by a known name")
    return ParsedLoad(sum(running), sum(waiting))


def _sample(line: bytes) -> tuple[bytes, float]:
    """A line's name and value; a timestamp may follow the value."""
    labelled, brace, after = line.rpartition(b"}")
    name, *texts = [labelled.partition(b"{")[0], *after.split()] if brace else line.split()
    value = float(texts[0]) if texts else nan
    if not isfinite(value):
        raise ValueError(f"/metrics: no number in {line[:200]!r}")
    return name, value
