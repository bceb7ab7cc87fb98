"""Asks the engines' /health: at registration, every few seconds, and at once after a dropped connection."""

import asyncio
from collections.abc import Callable

from pdctl.router.engines.instance import Instance, ServedModel
from pdctl.router.engines.registry import Registry
from pdctl.router.engines.served_model import ask_served_model
from pdctl.router.settings import Limits
from pdctl.router.upstream.fetch import FetchError, fetch


async def probe(instance: Instance, ask_model: bool) -> ServedModel | None:
    """Ask an engine whether it is healthy, for what its protocol needs to know, and perhaps for its model.

    FetchError says what is wrong.
    """
    timeout = instance.pool.limits.probe_timeout
    answer = await fetch(instance.pool, b"GET", b"/health", timeout=timeout)
    if answer.status != 200:
        raise FetchError(f"/health answers {answer.status}")
    await instance.protocol.learn(instance)
    return await ask_served_model(instance) if ask_model else None


class HealthChecks:
    """Takes out engines that are not healthy, and brings them in again."""

    def __init__(self, registry: Registry, limits: Limits, on_found: Callable[[Instance], None]) -> None:
        """`on_found` is called when an instance that did not get requests is brought in."""
        self._registry = registry
        self._limits = limits
        self._on_found = on_found
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._next = asyncio.get_running_loop().time() + limits.probe_interval

    def check(self, now: float) -> None:
        """Probe live engines when it is time to, and the others each time. Called once a tick."""
        due = now >= self._next
        if due:
            self._next = now + self._limits.probe_interval
        for instance in self._registry.instances.values():
            if due or not instance.live:
                self.probe_soon(instance)

    def probe_soon(self, instance: Instance) -> None:
        """Probe an engine now, unless that is under way."""
        if instance.key in self._tasks:
            return
        task = asyncio.get_running_loop().create_task(self._probe(instance))
        self._tasks[instance.key] = task
        task.add_done_callback(lambda _: self._tasks.pop(instance.key))

    async def probe_all(self) -> None:
        """Probe the engines that get no requests, and wait for the answers."""
        for instance in self._registry.instances.values():
            if not instance.live:
                self.probe_soon(instance)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=self._limits.probe_timeout)

    def close(self) -> None:
        """Stop all probes."""
        for task in self._tasks.values():
            task.cancel()

    async def _probe(self, instance: Instance) -> None:
        engine_id = instance.engine_id
        problem = served = None
        try:
            served = await probe(instance, instance.is_asked and not instance.live)
        except FetchError as error:
            problem = error
        if self._registry.instances.get(instance.key) is not instance:
            return  # removed while it was asked
        if problem is not None:
            self._failed(instance, problem)
        else:
            self._succeeded(instance, served, renewed=instance.engine_id != engine_id)

    def _failed(self, instance: Instance, error: FetchError) -> None:
        instance.failures += 1
        instance.successes = 0
        if error.unreachable or not instance.live:
            self._registry.take_out(instance, str(error))
        if instance.failures >= self._limits.probe_failures:  # each time: another engine may have come back meanwhile
            self._registry.give_up(instance, f"{error} ({instance.failures} times in a row)")

    def _succeeded(self, instance: Instance, served: ServedModel | None, *, renewed: bool) -> None:
        if served is not None and not instance.live:
            self._registry.learn_model(instance, served)
        instance.failures = 0
        instance.successes += 1
        if renewed or (not instance.live and instance.successes >= self._limits.probe_successes):
            self._registry.bring_in(instance)
            self._on_found(instance)
