"""Asks the engines' /health: at registration, every few seconds, and at once after a dropped connection."""

import asyncio

from pdctl.router.fetch import FetchError, fetch
from pdctl.router.instance import Instance
from pdctl.router.registry import Registry
from pdctl.router.settings import Limits


async def probe(instance: Instance) -> None:
    """Ask an engine whether it is healthy; FetchError says what is wrong."""
    status = await fetch(instance, b"GET", b"/health", timeout=instance.pool.limits.probe_timeout)
    if status != 200:
        raise FetchError(f"/health answers {status}")


class HealthChecks:
    """Takes out engines that are not healthy."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._next = asyncio.get_running_loop().time() + limits.probe_interval

    def check(self, now: float) -> None:
        """Probe every live engine when it is time to. Called once a tick."""
        if now < self._next:
            return
        self._next = now + self._limits.probe_interval
        for instance in self._registry.instances.values():
            if instance.live:
                self.probe_soon(instance)

    def probe_soon(self, instance: Instance) -> None:
        """Probe an engine now, unless that is under way."""
        if instance.key in self._tasks:
            return
        task = asyncio.get_running_loop().create_task(self._probe(instance))
        self._tasks[instance.key] = task
        task.add_done_callback(lambda _: self._tasks.pop(instance.key))

    def close(self) -> None:
        """Stop all probes."""
        for task in self._tasks.values():
            task.cancel()

    async def _probe(self, instance: Instance) -> None:
        try:
            await probe(instance)
        except FetchError as error:
            instance.failures += 1
            if error.unreachable:
                self._registry.take_out(instance, str(error))
            elif instance.failures >= self._limits.probe_failures:
                self._registry.take_out(instance, f"{error} ({instance.failures} times in a row)")
        else:
            instance.failures = 0
