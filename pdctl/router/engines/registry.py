"""The engines that the router knows, and which of them get requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from pdctl.router.engines.breaker import State
from pdctl.router.engines.groups import Group
from pdctl.router.engines.instance import Instance, Registration, ServedModel
from pdctl.router.engines.load import Load
from pdctl.router.settings import Role, Settings
from pdctl.router.upstream.fetch import FetchError
from pdctl.router.upstream.pool import address

log = logging.getLogger(__name__)

Probe = Callable[[Instance, bool], Awaitable[ServedModel | None]]  # see health.py: FetchError says what is wrong
LoadOf = Callable[[str], Load]  # the load of the instance with this key


class RegistrationError(Exception):
    """A registration is refused; the message says why."""


class Registry:
    """All instances by `host:port`. `groups` holds those that get requests, by the model that they serve."""

    def __init__(self, settings: Settings, probe: Probe, load_of: LoadOf) -> None:
        self.instances: dict[str, Instance] = {}
        self.groups: dict[str, Group] = {}
        self.on_change: Callable[[], None] = _nothing  # called whenever other instances get requests
        self.on_gone: Callable[[Instance], None] = _nothing  # called when an instance is not known any more
        self.on_hung: Callable[[Instance, str], None] = _nothing  # called when an instance is not expected to answer
        self._settings = settings
        self._probe = probe
        self._load_of = load_of
        self._now = asyncio.get_running_loop().time
        self._removed: dict[str, float] = {}  # by an operator, and when they registered last
        self._rebuild()

    # Coming and going.

    async def register(self, registration: Registration) -> bool:
        """Add an instance or take its heartbeat; one that is not live yet (again) must answer its /health first.

        One that names no model is asked for it then. Returns whether that is news. RegistrationError if it is refused.
        """
        key = address(registration.host_ip, registration.port)
        self._check_admissible(registration.role, key)
        instance = self.instances.get(key)
        if instance is not None:
            instance.last_heartbeat = self._now()
        if instance is not None and instance.live:
            return self.admit(registration)
        instance = instance or self._make(registration)
        try:
            await self._check_healthy(instance, registration)
            return self.admit(registration, instance)
        finally:
            if self.instances.get(key) is not instance:
                instance.pool.retire()  # it was refused, given up, or another registration of the engine was faster

    def admit(self, registration: Registration, probed: Instance | None = None) -> bool:
        """Take a registration of an instance that is known to be healthy; whether it is news."""
        key = address(registration.host_ip, registration.port)
        self._check_admissible(registration.role, key)
        instance = self.instances.get(key)
        if instance is None:
            instance = self.instances[key] = probed or self._make(registration)
        instance.last_heartbeat = self._now()
        registration = instance.named(registration)
        if instance.live and instance.registration.says_the_same(registration):
            instance.registration = registration
            return False
        instance.change(registration)
        state = "paused" if registration.is_paused else "registered"
        log.info("%s: %s at %s (%s)", state, registration.role, instance.url, registration.model or "no model name")
        self.bring_in(instance)
        return True

    def admit_told(self, registration: Registration, engine_id: str, served: ServedModel | None, *, news: bool) -> None:
        """Take a registration that another worker has admitted."""
        key = address(registration.host_ip, registration.port)
        if key in self._removed:
            return  # the other did not know it yet; it does not count as a try to come back
        instance = self.instances.get(key)
        if instance is None:
            instance = self._make(registration)
        elif not instance.live and not news:
            instance.last_heartbeat = self._now()
            return  # this process has its own reason to keep it out
        if not instance.live:
            instance.engine_id = engine_id
        instance.served = served
        self.admit(registration, instance)

    def bring_in_told(self, key: str, engine_id: str, served: ServedModel | None) -> None:
        """Let an instance get requests that another worker has just found healthy, or under another engine id."""
        instance = self.instances.get(key)
        if instance is None or (instance.live and (instance.engine_id, instance.served) == (engine_id, served)):
            return
        instance.engine_id = engine_id
        if served is not None:
            self.learn_model(instance, served)
        self.bring_in(instance)

    def add_fixed(self, registration: Registration) -> None:
        """Add an instance that sends no heartbeats; its health decides when it gets requests."""
        instance = self._make(registration, fixed=True)
        self.instances[instance.key] = instance
        self._rebuild()

    def learn_model(self, instance: Instance, served: ServedModel) -> None:
        """Take what an instance that was asked says of its model, before it is brought in."""
        instance.served = served
        registration = msgspec.structs.replace(
            instance.registration, model=served.name, max_model_len=served.max_model_len
        )
        if registration != instance.registration:
            log.info("%s serves %s", instance.name, served.name)
            instance.change(registration)

    def bring_in(self, instance: Instance) -> None:
        """Let an instance that is healthy get requests."""
        instance.live, instance.reason = True, ""
        instance.failures = instance.successes = 0
        instance.breaker.reset()
        self._rebuild()

    def take_out(self, instance: Instance, reason: str) -> None:
        """Give an instance no more requests until it is found healthy."""
        if not instance.live:
            instance.reason = reason
            return
        log.warning("taken out until it is healthy: %s: %s", instance.name, reason)
        instance.live, instance.reason = False, reason
        instance.failures = instance.successes = 0
        self._rebuild()

    def give_up(self, instance: Instance, reason: str) -> None:
        """Take an instance out, and expect no answer to what it has been sent."""
        self.take_out(instance, reason)
        self.on_hung(instance, reason)

    def drain(self, instance: Instance, *, draining: bool) -> None:
        """Give an instance no more requests on an operator's word, or let it have them again."""
        if instance.draining != draining:
            log.info("%s: %s", "draining" if draining else "no longer draining", instance.name)
            instance.draining = draining
            self._rebuild()

    def remove(self, instance: Instance) -> None:
        """Forget an instance on an operator's word; what it is serving ends as it would have."""
        log.info("removed: %s", instance.name)
        self._removed[instance.key] = self._now()
        self._drop(instance, "it was removed")

    def keep_out(self, key: str) -> None:
        """Forget an instance that was removed at another worker, and do not let it come back too soon."""
        instance = self.instances.get(key)
        if instance is not None:
            self.remove(instance)
        self._removed[key] = self._now()

    def is_kept_out(self, key: str) -> bool:
        """Whether an instance is refused because an operator has removed it."""
        return key in self._removed

    def check(self, now: float) -> None:
        """Remove instances whose heartbeats have ceased; let breakers cool down. Called once a tick."""
        limit = self._settings.heartbeat_timeout
        for instance in [i for i in self.instances.values() if not i.fixed and now - i.last_heartbeat > limit]:
            log.warning("removed: %s: no heartbeat for %g s", instance.name, limit)
            self._drop(instance, f"no heartbeat for {limit:g} s")
            self.on_hung(instance, instance.reason)
        for key in [key for key, seen in self._removed.items() if now - seen > limit]:
            del self._removed[key]
        for instance in self.instances.values():
            if instance.breaker.cooled_down(now, self._settings.limits.breaker_open):
                self._rebuild()

    # How requests fare.

    def request_failed(self, instance: Instance, kind: str, reason: str) -> None:
        """Count a request's failure at an instance, at once."""
        instance.failed[kind] += 1
        if kind == "connect":
            self.take_out(instance, reason)
        elif instance.breaker.failed(self._now(), self._settings.limits.breaker_failures):
            log.warning("breaker opened: %s: %s", instance.name, reason)
            self._rebuild()

    def request_succeeded(self, instance: Instance) -> None:
        """Trust an instance again that has failed requests."""
        was = instance.breaker.state
        instance.breaker.reset()
        if was is not State.CLOSED:
            log.info("breaker closed: %s", instance.name)
            self._rebuild()

    def try_out(self, instance: Instance, *, begins: bool) -> None:
        """The one request that an instance with a half-open breaker gets begins, or has ended without a verdict."""
        if instance.breaker.state is State.HALF_OPEN:  # else another request has decided already
            instance.breaker.on_trial = begins
            self._rebuild()

    # What there is.

    def group(self, model: str) -> Group | None:
        """The engines for a model; where there is only one model, for any name: the engines know theirs."""
        group = self.groups.get(model)
        if group is None and len(self.groups) == 1:
            return next(iter(self.groups.values()))
        return group

    def live(self, role: Role) -> list[Instance]:
        """The instances of a role that answer, paused ones included."""
        return [i for i in self.instances.values() if i.live and i.registration.role == role]

    def missing(self) -> str | None:
        """Why not every request can be served; None if they can."""
        for group in self.groups.values():
            reason = self.missing_in(group)
            if reason is not None:
                return reason if len(self.groups) == 1 else f"model {group.model}: {reason}"
        return None

    def missing_in(self, group: Group) -> str | None:
        """Why no request for a model can be served; None if one can."""
        if self._settings.splitwise:
            needed: dict[Role, list[Instance]] = {"prefill": group.prefill, "decode": group.decode}
        else:
            needed = {"mixed": group.mixed}
        for role, ready in needed.items():
            if not ready:
                return self._absence(role, group.model)
        return group.misfit()

    def _check_admissible(self, role: Role, key: str) -> None:
        splitwise = self._settings.splitwise
        if splitwise == (role == "mixed"):
            mode, wanted = ("with", "prefill and decode") if splitwise else ("without", "mixed")
            raise RegistrationError(f"role is {role}, but this router runs {mode} --splitwise: it takes {wanted}")
        if key in self._removed:
            self._removed[key] = self._now()
            raise RegistrationError(
                f"{key} was removed by an operator; it may come back after "
                f"{self._settings.heartbeat_timeout:g} s without a registration"
            )

    async def _check_healthy(self, instance: Instance, registration: Registration) -> None:
        try:
            instance.served = await self._probe(instance, not registration.model) or instance.served
        except FetchError as error:
            instance.reason = str(error)
            raise RegistrationError(f"{instance.url} is not healthy: {error}") from None

    def _make(self, registration: Registration, *, fixed: bool = False) -> Instance:
        load = self._load_of(address(registration.host_ip, registration.port))
        return Instance(registration, self._settings.limits, load, fixed=fixed)

    def _drop(self, instance: Instance, reason: str) -> None:
        del self.instances[instance.key]
        instance.live, instance.reason = False, reason
        instance.pool.retire()
        self._rebuild()
        self.on_gone(instance)

    def _rebuild(self) -> None:
        known = {i.registration.model for i in self.instances.values()}
        ready = [i for i in self.instances.values() if i.ready]
        self.groups = {model: Group(model, ready) for model in known - {""} or {""}}
        self.on_change()

    def _absence(self, role: str, model: str) -> str:
        known = [
            i for i in self.instances.values() if i.registration.role == role and i.registration.model in ("", model)
        ]
        if not known:
            return f"no {role} instance is registered"
        if any(i.live for i in known):
            return f"every {role} instance is {'draining' if any(i.draining for i in known) else 'paused'}"
        return f"no {role} instance answers: " + "; ".join(f"{i.url}: {i.reason}" for i in known)


def _nothing(*_: object) -> None:
    pass
