"""A plan beside the one that runs: what need not change keeps its name, ports and GPUs."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inventories import make_inventory

from pdctl.errors import PlanError
from pdctl.planning.changes import difference
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.planner import make_plan
from pdctl.planning.running import engines_of
from pdctl.profiles import Profile
from pdctl.topology.models import Topology

HOSTS = {"here": {}, "far": {"ssh": "far"}}


def profile_of(gpus: str = "none", **changes: Any) -> Profile:
    """An engine whose ports are picked by the plan, and which is told of its GPUs."""
    role = {"ports": {"api": "chosen", "side": {"kind": "chosen", "per": "dp", "consecutive": True}}}
    content = {
        "name": "other",
        "description": "has ports of the plan",
        "protocol": "builtin",
        "registers": "with token",
        "gpus": gpus,
        "command": ["run", "--port", "{port.api}", "--side", "{port.side}", "--threads", "{threads}"],
        "env": {"CUDA_VISIBLE_DEVICES": "{gpus}"},
        "roles": dict.fromkeys(("prefill", "decode", "mixed"), role),
    }
    return Profile.model_validate(content | changes)


def topology_of(**sections: Any) -> Topology:
    return Topology.model_validate({"prefill": 1, "decode": 1, "hosts": HOSTS} | sections)


def inventories_of(gpus: int = 0, current: Plan | None = None) -> dict[str, Inventory]:
    """Two hosts as they are while a plan runs there: its ports are taken, and its GPUs full."""
    hosts = {"here": make_inventory(gpus=gpus), "far": make_inventory(gpus=gpus, address="10.0.0.2")}
    for process in current.processes if current else ():
        host = hosts[process.host]
        taken = host.taken_ports | dict.fromkeys(process.given_ports, "pid 77 (engine)")
        full = tuple(
            gpu.model_copy(update={"memory_used_mb": 900 if gpu.index in process.gpus else gpu.memory_used_mb})
            for gpu in host.gpus
        )
        hosts[process.host] = host.model_copy(update={"taken_ports": taken, "gpus": full})
    return hosts


def plan_of(topology: Topology, profile: Profile, current: Plan | None = None, gpus: int = 0, **more: Any) -> Plan:
    return make_plan(topology, profile, inventories_of(gpus, current), current, **more)


def by_name(plan: Plan) -> dict[str, ProcessPlan]:
    return {process.name: process for process in plan.engines}


def test_more_engines_leave_the_others_alone():
    profile = profile_of("required")
    current = plan_of(topology_of(), profile, gpus=8)
    wanted = plan_of(topology_of(prefill=2, decode=3), profile, current, gpus=8)
    for name, process in by_name(current).items():
        assert by_name(wanted)[name] == process
    assert [(e.name, e.gpus, e.ports["api"]) for e in wanted.engines] == [
        ("prefill-0", (0,), 20000),
        ("prefill-1", (2,), 20004),
        ("decode-0", (1,), 20002),
        ("decode-1", (3,), 20006),
        ("decode-2", (4,), 20008),
    ]


def test_fewer_engines_take_the_last_ones():
    profile = profile_of()
    current = plan_of(topology_of(decode=3), profile)
    assert list(by_name(plan_of(topology_of(decode=2), profile, current))) == ["prefill-0", "decode-0", "decode-1"]


def test_a_number_that_is_free_is_used_again():
    profile = profile_of()
    current = plan_of(topology_of(decode=3), profile)
    gone = current.model_copy(update={"engines": tuple(e for e in current.engines if e.name != "decode-1")})
    wanted = plan_of(topology_of(decode=3), profile, gone)
    assert difference(gone, wanted).added[0].name == "decode-1"
    assert by_name(wanted)["decode-2"] == by_name(current)["decode-2"]


def test_the_group_that_shrinks_loses_its_own():
    """And not the one that is the last of the role."""
    profile = profile_of()
    small = {"args": {"size": "small"}}
    current = plan_of(topology_of(decode=[{"replicas": 2}, small]), profile)
    wanted = plan_of(topology_of(decode=[{"replicas": 1}, small]), profile, current)
    change = difference(current, wanted)
    assert [engine.name for engine in change.removed] == ["decode-1"]
    assert [engine.name for engine in change.kept] == ["prefill-0", "decode-0", "decode-2"]
    assert by_name(wanted)["decode-2"].group == 1


def test_an_engine_with_other_flags_keeps_its_place():
    profile = profile_of("required")
    current = plan_of(topology_of(), profile, gpus=4)
    wanted = plan_of(topology_of(decode={"args": {"max": 2}}), profile, current, gpus=4)
    (changed,) = difference(current, wanted).replaced
    assert (changed.old.head.ports, changed.old.gpus) == (changed.new.head.ports, changed.new.gpus)


def test_an_engine_that_grows_takes_further_gpus_and_ports():
    profile = profile_of("required")
    current = plan_of(topology_of(), profile, gpus=4)
    wanted = plan_of(topology_of(decode={"tp": 2, "dp": 1}), profile, current, gpus=4)
    assert by_name(wanted)["decode-0"].gpus == (2, 3)
    assert by_name(wanted)["decode-0"].ports == by_name(current)["decode-0"].ports
    wanted = plan_of(topology_of(decode={"dp": 2}), profile, current, gpus=4)
    side = [by_name(wanted)["decode-0"].ports[f"side-{rank}"] for rank in range(2)]
    assert side == [20004, 20005]


def test_gpus_of_an_engine_that_goes_are_given_only_where_no_others_are_free():
    profile = profile_of("required")
    current = plan_of(topology_of(prefill=2), profile, gpus=4)
    turned = topology_of(prefill=1, decode=2)
    wanted = plan_of(turned, profile, current, gpus=4, leaving=["prefill-1"])
    assert by_name(wanted)["decode-1"].gpus == (3,)
    current = plan_of(topology_of(prefill=2), profile, gpus=3)
    wanted = plan_of(turned, profile, current, gpus=3, leaving=["prefill-1"])
    assert by_name(wanted)["decode-1"].gpus == (1,)
    with pytest.raises(PlanError, match=r"decode\[0\]: engine 'other' needs 1 free GPU\(s\).*, 0 left"):
        plan_of(topology_of(prefill=2, decode=2), profile, current, gpus=3)


def test_gpus_that_are_listed_stay_with_their_engines():
    profile = profile_of("required")
    current = plan_of(topology_of(decode={"replicas": 2, "gpus": [3, 1]}), profile, gpus=4)
    wanted = plan_of(topology_of(decode={"replicas": 2, "gpus": [1, 2]}), profile, current, gpus=4)
    assert {e.name: e.gpus for e in wanted.engines} == {"prefill-0": (0,), "decode-0": (2,), "decode-1": (1,)}
    assert [replaced.name for replaced in difference(current, wanted).replaced] == ["decode-0"]


def test_the_one_that_leaves_is_the_one_that_was_named():
    profile = profile_of()
    current = plan_of(topology_of(prefill=3), profile)
    wanted = plan_of(topology_of(prefill=2, decode=2), profile, current, leaving=["prefill-1"])
    change = difference(current, wanted)
    assert ([e.name for e in change.removed], [e.name for e in change.added]) == (["prefill-1"], ["decode-1"])


def test_an_engine_that_moves_is_another():
    profile = profile_of()
    current = plan_of(topology_of(decode={"host": "far"}), profile)
    change = difference(current, plan_of(topology_of(decode=[{"host": "far", "replicas": 0}, {}]), profile, current))
    assert [e.name for e in change.removed] == ["decode-0"]
    assert [(e.name, e.hosts) for e in change.added] == [("decode-1", ("here",))]


def test_a_host_that_becomes_the_only_one_is_reached_as_before():
    profile = profile_of()
    far = {"host": "far"}
    current = plan_of(topology_of(decode=[{}, far]), profile)
    change = difference(current, plan_of(topology_of(), profile, current))
    assert ([e.name for e in change.removed], change.replaced, change.router) == (["decode-1"], (), False)


def test_a_port_of_an_engine_that_goes_can_be_given_to_the_one_that_comes():
    profile = profile_of()
    given = {"args": {"port": 9000}}
    current = plan_of(topology_of(prefill=[{}, given]), profile)
    wanted = plan_of(topology_of(decode=[{}, given]), profile, current)
    assert [e.ports["api"] for e in wanted.engines] == [20000, 20003, 9000]
    with pytest.raises(PlanError, match=r"decode\[1\].args.port: port 20000 of host 'here' is not free: prefill-0"):
        plan_of(topology_of(decode=[{}, {"args": {"port": 20000}}]), profile, current)


def test_what_looks_after_an_engine_can_change_while_it_runs():
    profile = profile_of()
    current = plan_of(topology_of(), profile)
    other = profile_of(stop_grace_s=99.0, readiness={"timeout_s": 1.0})
    change = difference(current, plan_of(topology_of(), other, current))
    assert not change.changes_processes
    assert {engine.head.stop_grace_s for engine in change.kept} == {99.0}


groups = st.lists(
    st.fixed_dictionaries(
        {"host": st.sampled_from(["here", "far"]), "replicas": st.integers(0, 3)},
        optional={"args": st.fixed_dictionaries({"size": st.integers(0, 1)}), "dp": st.integers(1, 2)},
    ),
    max_size=3,
)
sections = st.fixed_dictionaries({"prefill": groups, "decode": groups})
profiles = st.sampled_from(["none", "required"])


@settings(max_examples=80, deadline=None)
@given(before=sections, after=sections, gpus=profiles)
def test_every_change(before: dict[str, Any], after: dict[str, Any], gpus: str):
    profile = profile_of(gpus)
    current = plan_of(topology_of(**before), profile, gpus=64)
    wanted = plan_of(topology_of(**after), profile, current, gpus=64)
    assert wanted == plan_of(topology_of(**after), profile, current, gpus=64), "equal inputs give an equal plan"
    assert sum(group["replicas"] for role in ("prefill", "decode") for group in after[role]) == len(wanted.engines)
    change = difference(current, wanted)
    old, new = by_name(current), by_name(wanted)
    for engine in change.kept:
        assert new[engine.name].model_copy(update={"group": 0}) == old[engine.name].model_copy(update={"group": 0})
    assert_apart([process for process in current.engines if process.name not in new] + list(wanted.processes))
    assert all(replaced.old.hosts == replaced.new.hosts for replaced in change.replaced)
    again = difference(wanted, plan_of(topology_of(**after), profile, wanted, gpus=64))
    assert not again.changes_processes, "what is as it should be stays"


def assert_apart(processes: list[ProcessPlan]) -> None:
    """No two that run at the same time, as all that is added starts before the rest ends, share a port or a GPU."""
    ports = [(process.host, port) for process in processes for port in process.given_ports]
    gpus = [(process.host, gpu) for process in processes for gpu in process.gpus]
    assert len(set(ports)) == len(ports)
    assert len(set(gpus)) == len(gpus)


@settings(max_examples=60, deadline=None)
@given(before=sections, more=st.integers(0, 2), fewer=st.integers(0, 2))
def test_other_numbers_replace_nothing(before: dict[str, Any], more: int, fewer: int):
    profile = profile_of("required")
    current = plan_of(topology_of(**before), profile, gpus=64)
    after = {
        "prefill": [group | {"replicas": group["replicas"] + more} for group in before["prefill"]],
        "decode": [group | {"replicas": max(0, group["replicas"] - fewer)} for group in before["decode"]],
    }
    wanted = plan_of(topology_of(**after), profile, current, gpus=64)
    assume(current.router.address == wanted.router.address)  # another host beside the only one: loopback does not do
    change = difference(current, wanted)
    assert not change.replaced
    assert {engine.role for engine in change.removed} <= {"decode"}
    assert {engine.role for engine in change.added} <= {"prefill"}
    assert len(engines_of(current)) == len(change.kept) + len(change.removed)
