"""The ports that a user gives, to engines and to the routers of others."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from inventories import make_inventory
from planned_engines import FOUR_HOSTS, options, plan_of, refusal, topology_of

from pdctl.errors import PlanError
from pdctl.planning.planner import make_plan, ports_to_probe
from pdctl.profiles import load_profile

TWO_HOSTS = {"hosts": {**FOUR_HOSTS, "here": {}}}


def test_a_port_that_the_user_gives_is_the_plans():
    plan = plan_of("vllm", prefill={"args": {"port": 8100}, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}})
    prefill = plan.engines[0]
    assert (prefill.ports["api"], prefill.ports["side-channel"]) == (8100, 5600)
    assert options(prefill.argv, "--port") == ["8100"]
    assert options(plan.router.argv, "--prefill") == ["http://127.0.0.1:8100"]


def test_whoever_holds_a_given_port_is_asked_for():
    router = {"kind": "vllm-router", "port": 9000, "args": {"prometheus-port": 29000}}
    topology = topology_of("vllm", router=router, prefill={"args": {"port": 8100}})
    assert {8100, 9000, 29000} <= set(ports_to_probe(topology, load_profile("vllm"))["here"])


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
        ({"args": {"port": "²"}}, "prefill[0].args.port: ² is no port"),
        ({"args": {"port": 65536}}, "prefill[0].args.port: 65536 is no port"),
        (
            {"args": {"port": 0}},
            "prefill[0].args.port: the others have to be told the port: give one, or leave it out for a free one",
        ),
        (
            {"args": {"port": False}},
            "prefill[0].args.port: it cannot be without this port, at which the others reach it",
        ),
        (
            {"dp": 2, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "65535"}},
            "prefill[0].env.VLLM_NIXL_SIDE_CHANNEL_PORT: 2 ports in a row do not fit from 65535 on",
        ),
    ],
)
def test_a_given_port_that_cannot_be(prefill: dict[str, Any], said: str):
    assert refusal("vllm", {"taken_ports": {8100: "pid 7 (nginx)"}}, prefill=prefill) == said


def test_no_port_of_its_own_for_the_api_is_refused_also_where_the_engine_reports_it():
    said = refusal("builtin", prefill={"args": {"port": False}})
    assert said == "prefill[0].args.port: it cannot be without this port, at which the others reach it"


def test_a_row_of_ports_ends_with_the_last_one_there_is():
    prefill = plan_of("vllm", prefill={"dp": 2, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "65534"}}).engines[0]
    assert prefill.port_numbers["side-channel"] == (65534, 65535)


def test_what_is_given_is_not_picked_for_anything_else():
    router = {"kind": "vllm-router", "port": 0}
    plan = plan_of("vllm", router=router, decode={"args": {"port": 20000}}, prefill={"args": {"port": 20002}})
    assert (plan.engines[0].ports["api"], plan.engines[1].ports["api"]) == (20002, 20000)
    assert plan.router.ports == {"api": 20001, "metrics": 20003}


def test_where_the_process_says_its_port_any_can_be_asked_for():
    plan = plan_of("builtin", prefill={"replicas": 2, "args": {"port": 0}})
    assert [engine.ports["api"] for engine in plan.engines] == [0, 0, 0]


def test_a_port_is_taken_only_on_the_host_where_it_is_bound():
    """vLLM has its API and its rendezvous on the head's host alone, SGLang a server of its own on each."""
    args = {"port": 8100, "data-parallel-rpc-port": 5700}
    spread = {"hosts": ["a", "b"], "dp": 4, "args": args, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}}
    other = {"host": "b", "args": {"port": 8100}, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5601"}}
    plan = plan_of("vllm", **TWO_HOSTS, prefill=spread, decode=other)
    assert plan.engines[2].ports["api"] == 8100
    other["env"] = {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5602"}
    assert refusal("vllm", **TWO_HOSTS, prefill=spread, decode=other) == (
        "decode[0].env.VLLM_NIXL_SIDE_CHANNEL_PORT: port 5602 of host 'b' is not free: prefill-0-node1"
    )
    sglang = {"prefill": {"hosts": ["a", "b"], "tp": 2, "args": {"port": 8100}}, "decode": {"host": "b"}}
    sglang["decode"]["args"] = {"port": 8100}
    assert refusal("sglang", **TWO_HOSTS, **sglang) == (
        "decode[0].args.port: port 8100 of host 'b' is not free: prefill-0-node1"
    )


def test_an_engine_whose_ranks_are_on_several_hosts_has_its_side_channel_on_the_first():
    spread = {"hosts": ["a", "b"], "tp": 4, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}}
    other = {"host": "b", "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}}
    assert plan_of("vllm", **TWO_HOSTS, prefill=spread, decode=other).engines[2].ports["side-channel"] == 5600


@pytest.mark.parametrize("flag", ["metrics-port", "metrics_port"])
def test_a_flag_is_known_by_both_spellings(flag: str):
    plan = plan_of("fastdeploy", prefill={"args": {flag: 8101}})
    assert plan.engines[0].ports["metrics"] == 8101
    assert "--metrics-port" not in plan.engines[0].argv or flag == "metrics-port"


def test_a_port_that_a_profile_gives_together_with_its_flag(tmp_path: Path):
    role = {"args": ["--port={port.api}"], "ports": {"api": "chosen"}}
    content = {"name": "mine", "description": "ours", "protocol": "vllm-nixl", "gpus": "none", "command": ["run"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**content, "roles": {"prefill": role, "decode": role}}))
    topology = topology_of("vllm", prefill={"args": {"port": 8100}})
    plan = make_plan(topology, load_profile(str(tmp_path / "mine.yaml")), {"here": make_inventory()})
    prefill, decode = plan.engines
    assert (prefill.argv, prefill.ports) == (("run", "--port", "8100"), {"api": 8100})
    assert (decode.argv, decode.ports) == (("run", "--port=20000"), {"api": 20000})


# Routers of others


def test_a_routers_port_that_the_user_gives_is_the_plans():
    router = plan_of("vllm", router={"kind": "vllm-router", "args": {"prometheus-port": 29000}}).router
    assert router.ports == {"api": 8000, "metrics": 29000}
    assert options(router.argv, "--prometheus-port") == ["29000"]


@pytest.mark.parametrize(
    ("engine", "router", "said"),
    [
        (
            "vllm",
            {"kind": "vllm-router", "args": {"prometheus-port": 8100}},
            "router.args.prometheus-port: port 8100 of host 'here' is not free: pid 7 (nginx)",
        ),
        (
            "vllm",
            {"kind": "vllm-router", "args": {"prometheus-port": 0}},
            "router.args.prometheus-port: the others have to be told the port: give one, or leave it out for a free "
            "one",
        ),
        (
            "lmdeploy",
            {"kind": "lmdeploy-proxy", "args": {"server-port": 9000}},
            "router.args.server-port: give it as `router: {port: ...}`",
        ),
    ],
)
def test_a_routers_port_that_cannot_be(engine: str, router: dict[str, Any], said: str):
    assert refusal(engine, {"taken_ports": {8100: "pid 7 (nginx)"}}, router=router) == said


def test_a_router_without_metrics():
    plan = plan_of("vllm", router={"kind": "vllm-router", "args": {"prometheus-port": False}})
    assert plan.router.ports == {"api": 8000}
    assert "--prometheus-port" not in plan.router.argv


def test_too_many_ports_for_a_router():
    with pytest.raises(PlanError, match=r"^router.args.prometheus-port: 2 port\(s\) given, 1 needed: one in all"):
        plan_of("vllm", router={"kind": "vllm-router", "args": {"prometheus-port": [1, 2]}})
