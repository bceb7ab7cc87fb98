"""The engines that have registered, and which of them get requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pdctl.router.fetch import FetchError
from pdctl.router.instance import Instance, Registration, Role, address
from pdctl.router.pairs import Pair, mismatch
from pdctl.router.settings import Settings

log = logging.getLogger(__name__)

Probe = Callable[[Instance], Awaitable[None]]  # GET /health; FetchError says what is wrong


class RegistrationError(Exception):
    """A registration is refused; the message says why."""


class Registry:
    """All instances by `host:port`.

    `prefill`, `decode` and `mixed` hold those that get requests, `paired` the prefill ones that have a decode partner.
    """

    def __init__(self, settings: Settings, probe: Probe) -> None:
        self.instances: dict[str, Instance] = {}
        self.prefill: list[Instance] = []
        self.decode: list[Instance] = []
        self.mixed: list[Instance] = []
        self.paired: list[Instance] = []
        self._settings = settings
        self._probe = probe
        self._now = asyncio.get_running_loop().time
        self._partners: dict[str, list[Instance]] = {}
        self._pairs: dict[tuple[str, str], Pair] = {}

    async def register(self, registration: Registration) -> None:
        """Add an instance or take its heartbeat; one that is not live yet (again) must answer its /health first."""
        self._check_role(registration.role)
        key = address(registration.host_ip, registration.port)
        instance = self.instances.get(key)
        if instance is not None:
            instance.last_heartbeat = self._now()
        if instance is None or not instance.live:
            instance = await self._admit(instance or Instance(registration, self._settings.limits))
        elif instance.registration == registration:
            return
        state = "paused" if registration.is_paused else "registered"
        log.info("%s: %s at %s (%s)", state, registration.role, instance.url, registration.model or "no model name")
        self.instances[key] = instance
        instance.last_heartbeat = self._now()
        instance.registration = registration
        instance.live, instance.reason, instance.failures = True, "", 0
        self._rebuild()

    def take_out(self, instance: Instance, reason: str) -> None:
        """Give an instance no more requests until its next heartbeat."""
        if not instance.live:
            return
        log.warning("taken out until its next heartbeat: %s: %s", instance.name, reason)
        instance.live, instance.reason = False, reason
        self._rebuild()

    def check(self, now: float) -> None:
        """Remove instances whose heartbeats have ceased. Called once a tick."""
        limit = self._settings.heartbeat_timeout
        for instance in [i for i in self.instances.values() if now - i.last_heartbeat > limit]:
            log.warning("removed: %s: no heartbeat for %g s", instance.name, limit)
            del self.instances[instance.key]
            instance.live, instance.reason = False, f"no heartbeat for {limit:g} s"
            instance.pool.retire()
            self._rebuild()

    def live(self, role: Role) -> list[Instance]:
        """The instances of a role that answer, paused ones included."""
        return [i for i in self.instances.values() if i.live and i.registration.role == role]

    def missing(self) -> str | None:
        """Why no request can be served; None if one can."""
        needed = {"prefill": self.prefill, "decode": self.decode} if self._settings.splitwise else {"mixed": self.mixed}
        for role, ready in needed.items():
            if not ready:
                return self._absence(role)
        return self.misfit()

    def misfit(self) -> str | None:
        """Why no prefill instance can work with any decode instance, though there are some of both."""
        if self.paired or not self.prefill or not self.decode:
            return None
        reason = mismatch(self.prefill[0], self.decode[0])
        return f"no prefill instance can work with a decode instance: {reason}"

    def partners(self, prefill: Instance) -> list[Instance]:
        """The decode instances that can work with a prefill instance."""
        return self._partners[prefill.key]

    def pair(self, prefill: Instance | None, decode: Instance) -> Pair:
        """The pair of two live instances."""
        key = (prefill.key if prefill else "", decode.key)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = Pair(prefill, decode)
        return pair

    def _check_role(self, role: Role) -> None:
        splitwise = self._settings.splitwise
        if splitwise == (role == "mixed"):
            mode, wanted = ("with", "prefill and decode") if splitwise else ("without", "mixed")
            raise RegistrationError(f"role is {role}, but this router runs {mode} --splitwise: it takes {wanted}")

    async def _admit(self, instance: Instance) -> Instance:
        try:
            await self._probe(instance)
        except FetchError as error:
            instance.reason = str(error)
            if self.instances.get(instance.key) is not instance:
                instance.pool.retire()
            raise RegistrationError(f"{instance.url} is not healthy: {error}") from None
        # While this one was probed, another heartbeat may have been admitted, or the instance removed.
        admitted = self.instances.get(instance.key, instance)
        if admitted is not instance:
            instance.pool.retire()
        return Instance(admitted.registration, self._settings.limits) if admitted.pool.retired else admitted

    def _rebuild(self) -> None:
        self.prefill, self.decode, self.mixed = (
            [i for i in self.live(role) if not i.registration.is_paused] for role in ("prefill", "decode", "mixed")
        )
        self._partners = {p.key: [d for d in self.decode if mismatch(p, d) is None] for p in self.prefill}
        self.paired = [p for p in self.prefill if self._partners[p.key]]
        self._pairs = {}

    def _absence(self, role: str) -> str:
        known = [i for i in self.instances.values() if i.registration.role == role]
        if not known:
            return f"no {role} instance is registered"
        if any(i.live for i in known):
            return f"every {role} instance is paused"
        return f"no {role} instance answers: " + "; ".join(f"{i.url}: {i.reason}" for i in known)
