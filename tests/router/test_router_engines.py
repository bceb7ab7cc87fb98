"""Which engines the router knows, and which of them get requests: models, draining, removal, restarts, fixed ones."""

import asyncio

import pytest
from router_mocks import until

from pdctl.router.engines.breaker import State
from pdctl.router.engines.groups import Group
from pdctl.router.engines.instance import Instance, Registration
from pdctl.router.engines.load import Load
from pdctl.router.engines.registry import RegistrationError, Registry
from pdctl.router.settings import Limits, Role, Settings
from pdctl.router.upstream.fetch import FetchError

HEARTBEAT = 15.0


def registration(role: Role, port: int, **fields: object) -> Registration:
    return Registration(role=role, host_ip="127.0.0.1", port=port, **fields)  # type: ignore[arg-type]


class Probes:
    """Stands for the engines' /health."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sick: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, instance: Instance, ask_model: bool) -> None:
        self.asked.append(instance.key)
        await self.go.wait()
        if instance.key in self.sick:
            raise FetchError("/health answers 503")


class Known:
    """A registry, and what it has told others."""

    def __init__(self, *, splitwise: bool = True) -> None:
        self.probes = Probes()
        limits = Limits(breaker_failures=2, breaker_open=5.0)
        settings = Settings(splitwise=splitwise, heartbeat_timeout=HEARTBEAT, limits=limits)
        self.registry = Registry(settings, self.probes, lambda _: Load())
        self.clock = 1000.0
        self.registry._now = lambda: self.clock
        self.changes = 0
        self.gone: list[str] = []
        self.hung: list[tuple[str, str]] = []
        self.registry.on_change = self._change
        self.registry.on_gone = lambda instance: self.gone.append(instance.key)
        self.registry.on_hung = lambda instance, reason: self.hung.append((instance.key, reason))

    def _change(self) -> None:
        self.changes += 1

    async def register(self, role: Role, port: int, **fields: object) -> Instance:
        await self.registry.register(registration(role, port, **fields))
        return self.registry.instances[f"127.0.0.1:{port}"]

    def later(self, seconds: float) -> None:
        """Let time pass, and the clock strike."""
        self.clock += seconds
        self.registry.check(self.clock)

    def ports(self, model: str = "m") -> dict[str, list[int]]:
        group = self.registry.groups[model]
        lists = {"prefill": group.prefill, "decode": group.decode, "mixed": group.mixed}
        return {role: [i.registration.port for i in instances] for role, instances in lists.items() if instances}


# Models.


async def test_each_model_has_its_engines_and_one_without_a_name_is_every_models():
    known = Known()
    assert list(known.registry.groups) == [""]
    await known.register("prefill", 1, model="a")
    await known.register("decode", 2, model="a")
    await known.register("decode", 3, model="b")
    await known.register("prefill", 4)
    assert known.ports("a") == {"prefill": [1, 4], "decode": [2]}
    assert known.ports("b") == {"prefill": [4], "decode": [3]}
    assert known.registry.group("c") is None


async def test_where_there_is_one_model_any_name_will_do():
    known = Known()
    await known.register("prefill", 1, model="a")
    assert known.registry.group("whatever") is known.registry.groups["a"]
    assert known.registry.group("") is known.registry.groups["a"]
    await known.register("prefill", 2, model="b")
    assert known.registry.group("whatever") is None


async def test_every_model_must_have_every_role():
    known = Known()
    assert known.registry.missing() == "no prefill instance is registered"
    await known.register("prefill", 1, model="a")
    await known.register("decode", 2, model="a")
    assert known.registry.missing() is None
    await known.register("decode", 3, model="b")
    assert known.registry.missing() == "model b: no prefill instance is registered"
    await known.register("prefill", 4)
    assert known.registry.missing() is None


async def test_a_model_that_nobody_serves_any_more_is_not_missed():
    known = Known(splitwise=False)
    await known.register("mixed", 1, model="a")
    await known.register("mixed", 1, model="b")
    assert list(known.registry.groups) == ["b"]
    assert known.registry.missing() is None


async def test_an_engine_that_does_not_answer_keeps_its_model_known():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="a")
    known.registry.take_out(instance, "sick")
    group = known.registry.group("a")
    assert group is not None
    assert known.registry.missing_in(group) == "no mixed instance answers: http://127.0.0.1:1: sick"


async def test_only_a_prefill_with_a_partner_is_paired():
    known = Known()
    prefill = await known.register("prefill", 1, model="m", tp_size=1)
    wide = await known.register("prefill", 2, model="m", tp_size=4)
    decode = await known.register("decode", 3, model="m", tp_size=4)
    group = known.registry.groups["m"]
    assert group.paired == [wide]
    assert group.partners(wide) == [decode]
    assert group.partners(prefill) == []
    assert group.misfit() is None
    known.registry.drain(wide, draining=True)
    assert "tp_size 4" in str(known.registry.groups["m"].misfit())
    assert known.registry.missing() == known.registry.groups["m"].misfit()


async def test_pairs_are_made_once_and_forgotten_when_an_engine_changes():
    known = Known()
    prefill = await known.register("prefill", 1, model="m")
    decode = await known.register("decode", 2, model="m")
    group = known.registry.groups["m"]
    pair = group.pair(prefill, decode)
    assert group.pair(prefill, decode) is pair
    assert group.pair(None, decode) is not pair
    await known.register("decode", 2, model="m", connector_port=77)
    renewed = known.registry.groups["m"].pair(prefill, decode)
    assert b'"decode_connector_port":77' in renewed.info


# Heartbeats and restarts.


async def test_a_heartbeat_that_says_nothing_new_changes_nothing():
    known = Known()
    first = await known.register("prefill", 1, model="m")
    groups, changes = known.registry.groups, known.changes
    assert await known.registry.register(registration("prefill", 1, model="m")) is False
    assert known.registry.instances == {first.key: first}
    assert known.registry.groups is groups
    assert known.changes == changes
    assert known.probes.asked == [first.key]


async def test_a_restarted_engine_is_the_same_instance_as_it_is_now():
    known = Known()
    instance = await known.register("prefill", 1, model="old", connector_port=5)
    known.registry.take_out(instance, "gone")
    instance.breaker.failed(0.0, 1)
    assert (await known.register("prefill", 1, model="new", connector_port=6)) is instance
    assert (instance.live, instance.reason, instance.breaker.state) == (True, "", State.CLOSED)
    assert instance.registration.connector_port == 6
    assert known.ports("new") == {"prefill": [1]}
    assert known.probes.asked == [instance.key] * 2, "one that was out is asked before it comes in"


async def test_an_engine_that_changes_its_role_or_protocol_is_served_as_what_it_is():
    known = Known()
    instance = await known.register("prefill", 1, model="m")
    await known.register("decode", 1, model="m", protocol="builtin")
    assert known.ports() == {"decode": [1]}
    assert instance.protocol.name == "builtin"


async def test_an_engine_that_is_out_and_still_sick_stays_out():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.registry.take_out(instance, "sick")
    known.probes.sick.add(instance.key)
    known.later(HEARTBEAT - 1)
    with pytest.raises(RegistrationError, match="not healthy: /health answers 503"):
        await known.register("mixed", 1, model="m")
    assert known.ports() == {}
    known.later(HEARTBEAT - 1)
    assert known.registry.instances == {instance.key: instance}, "its heartbeat counted all the same"
    known.later(2)
    assert known.registry.instances == {}


async def test_without_heartbeats_an_engine_is_gone_and_expected_to_answer_nothing():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.later(HEARTBEAT - 1)
    await known.register("mixed", 1, model="m")
    known.later(HEARTBEAT - 1)
    assert instance.live
    known.later(2)
    assert (known.registry.instances, known.gone) == ({}, [instance.key])
    assert known.hung == [(instance.key, "no heartbeat for 15 s")]
    assert not instance.live
    assert instance.pool.retired
    again = await known.register("mixed", 1, model="m")
    assert again is not instance
    assert not again.pool.retired


async def test_a_registration_that_is_probed_twice_at_once_makes_one_instance():
    known = Known()
    known.probes.go.clear()
    both = [asyncio.create_task(known.registry.register(registration("prefill", 1, model="m"))) for _ in range(2)]
    await until(lambda: len(known.probes.asked) == 2, "the probe")
    known.probes.go.set()
    assert sorted(await asyncio.gather(*both)) == [False, True], "one of them is news"
    assert known.ports() == {"prefill": [1]}


# Draining and removal.


async def test_a_draining_engine_gets_nothing_even_after_it_restarts():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.registry.drain(instance, draining=True)
    changes = known.changes
    known.registry.drain(instance, draining=True)
    assert known.changes == changes, "once is enough"
    assert (known.ports(), instance.live) == ({}, True)
    assert known.registry.missing() == "every mixed instance is draining"
    known.registry.take_out(instance, "restarting")
    await known.register("mixed", 1, model="m", version="2")
    assert known.ports() == {}
    known.registry.drain(instance, draining=False)
    assert known.ports() == {"mixed": [1]}


async def test_a_paused_engine_gets_nothing_until_it_says_otherwise():
    known = Known(splitwise=False)
    await known.register("mixed", 1, model="m", is_paused=True)
    assert (known.ports(), known.registry.missing()) == ({}, "every mixed instance is paused")
    await known.register("mixed", 1, model="m")
    assert known.ports() == {"mixed": [1]}


async def test_a_removed_engine_stays_away_for_as_long_as_it_tries():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.registry.remove(instance)
    assert (known.registry.instances, known.gone, known.hung) == ({}, [instance.key], [])
    assert instance.pool.retired
    for _ in range(3):
        known.later(HEARTBEAT - 1)
        with pytest.raises(RegistrationError, match="removed by an operator"):
            await known.register("mixed", 1, model="m")
    assert known.registry.is_kept_out(instance.key)
    assert known.probes.asked == [instance.key], "it is not even asked"
    known.later(HEARTBEAT + 1)
    assert not known.registry.is_kept_out(instance.key)
    assert (await known.register("mixed", 1, model="m")).live


async def test_an_engine_removed_while_it_is_probed_does_not_slip_in():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.registry.take_out(instance, "sick")
    known.probes.go.clear()
    coming = asyncio.create_task(known.registry.register(registration("mixed", 1, model="m")))
    await until(lambda: len(known.probes.asked) == 2, "the probe")
    known.registry.remove(instance)
    known.probes.go.set()
    with pytest.raises(RegistrationError, match="removed by an operator"):
        await coming
    assert known.registry.instances == {}


# Engines named on the command line.


async def test_a_fixed_engine_waits_for_its_health_and_needs_no_heartbeat():
    known = Known(splitwise=False)
    known.registry.add_fixed(registration("mixed", 1, model="m"))
    [instance] = known.registry.instances.values()
    assert (known.ports(), instance.fixed) == ({}, True)
    assert known.registry.missing() == "no mixed instance answers: http://127.0.0.1:1: not checked yet"
    known.registry.bring_in(instance)
    assert known.ports() == {"mixed": [1]}
    known.later(100 * HEARTBEAT)
    assert known.ports() == {"mixed": [1]}


async def test_a_fixed_engine_that_registers_all_the_same_stays_fixed():
    known = Known(splitwise=False)
    known.registry.add_fixed(registration("mixed", 1))
    [instance] = known.registry.instances.values()
    assert (await known.register("mixed", 1, model="m")) is instance
    assert known.ports() == {"mixed": [1]}
    known.later(100 * HEARTBEAT)
    assert known.ports() == {"mixed": [1]}


# Trust.


async def test_an_engine_whose_breaker_is_open_is_used_only_if_there_is_no_other():
    known = Known(splitwise=False)
    bad, good = await known.register("mixed", 1, model="m"), await known.register("mixed", 2, model="m")
    for _ in range(2):
        known.registry.request_failed(bad, "status", "it answered 500")
    assert known.ports() == {"mixed": [2]}
    for _ in range(2):
        known.registry.request_failed(good, "status", "it answered 500")
    assert known.ports() == {"mixed": [1, 2]}, "a bad engine is better than no engine"
    assert known.registry.missing() is None
    known.registry.request_succeeded(good)
    assert known.ports() == {"mixed": [2]}


async def test_a_half_open_engine_gets_one_request_at_a_time():
    known = Known(splitwise=False)
    bad, _ = await known.register("mixed", 1, model="m"), await known.register("mixed", 2, model="m")
    for _ in range(2):
        known.registry.request_failed(bad, "dropped", "gone")
    known.later(4.9)
    assert known.ports() == {"mixed": [2]}
    known.later(0.2)
    assert known.ports() == {"mixed": [1, 2]}
    known.registry.try_out(bad, begins=True)
    assert known.ports() == {"mixed": [2]}
    known.registry.request_failed(bad, "dropped", "gone")
    assert (known.ports(), bad.breaker.state) == ({"mixed": [2]}, State.OPEN)
    assert bad.failed == {"dropped": 3}


async def test_an_engine_that_cannot_be_connected_is_out_at_once():
    known = Known(splitwise=False)
    instance = await known.register("mixed", 1, model="m")
    known.registry.request_failed(instance, "connect", "Connection refused")
    assert (known.ports(), instance.reason) == ({}, "Connection refused")


def test_a_group_of_nobody():
    group = Group("m", [])
    assert (group.prefill, group.decode, group.mixed, group.paired, group.misfit()) == ([], [], [], [], None)
