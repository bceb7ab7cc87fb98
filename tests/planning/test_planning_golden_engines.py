"""Plans for vLLM, SGLang and LMDeploy, with each router, beside documented commands: tests/planning/golden/.

The commands are those of the engines' and routers' documentation, with the addresses of two hosts that have NICs, the
ports that it gives, and the address of the host where it has 0.0.0.0.
"""

from typing import Any

import pytest
from golden_commands import GOLDEN, file_text, missing
from inventories import inventory_of

from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan
from pdctl.profiles import load_profile
from pdctl.topology.models import Topology
from tests.agent.sysfs_trees import hgx_h100

P, D = "10.0.0.1", "10.0.0.2"  # of prefill and of decode, whose host is the router's too
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def pair(engine: str, prefill: dict[str, Any], decode: dict[str, Any], **router: Any) -> dict[str, Any]:
    hosts = {"p": {"ssh": "p", "python": "/opt/engine/bin/python"}, "d": {"python": "/opt/engine/bin/python"}}
    sections = {"prefill": {"host": "p", **prefill}, "decode": {"host": "d", **decode}}
    return {
        "model": MODEL,
        "engine": engine,
        "hosts": hosts,
        "router": {"port": 8000, "host": "d", **router},
        **sections,
    }


def mixed(engine: str, port: int, **router: Any) -> dict[str, Any]:
    groups = [{"host": host, "args": {"port": port}} for host in ("p", "d")]
    return {key: value for key, value in pair(engine, {}, {}, **router).items() if key not in ("prefill", "decode")} | {
        "mixed": groups
    }


VLLM = (
    {"args": {"port": 8100}, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}},
    {"args": {"port": 8200}, "env": {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5601"}},
)
MOONCAKE = ({"args": {"port": 8010}, "env": {"VLLM_MOONCAKE_BOOTSTRAP_PORT": "8998"}}, {"args": {"port": 8020}})
SGLANG = (
    {"args": {"port": 30000, "disaggregation-bootstrap-port": 8998}, "gpus": [0, 1], "tp": 2},
    {"args": {"port": 30001}},
)
LMDEPLOY = ({"args": {"server-port": 23333}}, {"args": {"server-port": 23334}})
POLICIES = {"policy": "consistent_hash", "prefill-policy": "cache_aware", "decode-policy": "power_of_two"}

TOPOLOGIES = {
    "vllm": pair("vllm", *VLLM),
    "vllm-router": pair("vllm", *VLLM, kind="vllm-router", bind="0.0.0.0", args={"prometheus-port": 29000, **POLICIES}),
    "vllm-router-mixed": mixed("vllm", 8100, kind="vllm-router"),
    "vllm-mooncake": pair("vllm-mooncake", *MOONCAKE),
    "sglang": pair("sglang", *SGLANG),
    "sglang-mooncake": pair("sglang-mooncake", *SGLANG),
    "sglang-router": pair("sglang", *SGLANG, kind="sglang-router", bind="0.0.0.0"),
    "sglang-router-mixed": mixed("sglang", 30000, kind="sglang-router"),
    "lmdeploy": pair("lmdeploy", *LMDEPLOY, kind="lmdeploy-proxy", bind="0.0.0.0"),
}


def vllm(address: str, port: int, channel: int, role: str) -> str:
    config = f'{{"kv_connector":"NixlConnector","kv_role":"{role}","kv_load_failure_policy":"fail"}}'
    return (
        f"CUDA_VISIBLE_DEVICES=0 UCX_NET_DEVICES=mlx5_0:1 VLLM_NIXL_SIDE_CHANNEL_HOST={address}"
        f" VLLM_NIXL_SIDE_CHANNEL_PORT={channel} vllm serve {MODEL} --host {address} --port {port}"
        f" --tensor-parallel-size 1 --kv-transfer-config '{config}'"
    )


def mooncake(port: int, role: str) -> str:
    config = f'{{"kv_connector":"MooncakeConnector","kv_role":"{role}"}}'
    nics = "--kv-transfer-config.kv_connector_extra_config.device_name mlx5_0"
    return f"vllm serve {MODEL} --port {port} --kv-transfer-config '{config}' {nics}"


def sglang(address: str, port: int, tp: int, nics: str, mode: str) -> str:
    return (
        f"python -m sglang.launch_server --model-path {MODEL} --host {address} --port {port} --tp-size {tp}"
        f" --disaggregation-mode {mode} --disaggregation-ib-device {nics} --enable-metrics"
    )


def lmdeploy(port: int, role: str) -> str:
    return (
        f"CUDA_VISIBLE_DEVICES=0 lmdeploy serve api_server {MODEL} --server-port {port} --role {role}"
        f" --proxy-url http://{D}:8000 --backend pytorch --migration-backend DLSlime"
    )


VLLM_PAIR = {"prefill-0": vllm(P, 8100, 5600, "kv_producer"), "decode-0": vllm(D, 8200, 5601, "kv_consumer")}
SGLANG_PREFILL = sglang(P, 30000, 2, "mlx5_0,mlx5_3", "prefill") + " --disaggregation-bootstrap-port 8998"
SGLANG_DECODE = sglang(D, 30001, 1, "mlx5_0", "decode")
SGLANG_ROUTER = "python -m sglang_router.launch_router"


def sglang_pair(backend: str) -> dict[str, str]:
    transfer = f" --disaggregation-transfer-backend {backend}"
    return {"prefill-0": SGLANG_PREFILL + transfer, "decode-0": SGLANG_DECODE + transfer}


DOCUMENTED = {
    "vllm": VLLM_PAIR,
    "vllm-router": {
        "router": f"vllm-router --vllm-pd-disaggregation --kv-connector nixl --prefill http://{P}:8100"
        f" --decode http://{D}:8200 --policy consistent_hash --prefill-policy cache_aware --decode-policy power_of_two"
        " --host 0.0.0.0 --port 8000 --prometheus-host 0.0.0.0 --prometheus-port 29000",
        **VLLM_PAIR,
    },
    "vllm-router-mixed": {"router": f"vllm-router --worker-urls http://{P}:8100 http://{D}:8100"},
    "vllm-mooncake": {
        "router": f"python -m pdctl.router --prefill http://{P}:8010 8998 --decode http://{D}:8020",
        "prefill-0": f"VLLM_MOONCAKE_BOOTSTRAP_PORT=8998 {mooncake(8010, 'kv_producer')}",
        "decode-0": mooncake(8020, "kv_consumer"),
    },
    "sglang": sglang_pair("nixl") | {"router": f"python -m pdctl.router --prefill http://{P}:30000 8998"},
    "sglang-mooncake": sglang_pair("mooncake"),
    "sglang-router": {
        "router": f"{SGLANG_ROUTER} --pd-disaggregation --prefill http://{P}:30000 8998 --decode http://{D}:30001"
        " --host 0.0.0.0 --port 8000",
        **sglang_pair("nixl"),
    },
    "sglang-router-mixed": {"router": f"{SGLANG_ROUTER} --worker-urls http://{P}:30000 http://{D}:30000"},
    "lmdeploy": {
        "router": "lmdeploy serve proxy --server-name 0.0.0.0 --server-port 8000 --serving-strategy DistServe"
        " --migration-protocol RDMA --link-type RoCE",
        "prefill-0": lmdeploy(23333, "Prefill"),
        "decode-0": lmdeploy(23334, "Decode"),
    },
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    host = inventory_of(hgx_h100(tmp_path_factory.mktemp("sysfs")))
    return {name: plan_of(name, host) for name in TOPOLOGIES}


def plan_of(name: str, host: Inventory) -> Plan:
    topology = Topology.model_validate(TOPOLOGIES[name])
    hosts = {"p": host.model_copy(update={"address": P}), "d": host.model_copy(update={"address": D})}
    return make_plan(topology, load_profile(topology.engine), hosts)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_plan_is_the_one_on_file(name: str, plans: dict[str, Plan]):
    assert file_text(plans[name]) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_plan_has_all_that_is_documented(name: str, plans: dict[str, Plan]):
    processes = {process.name: process for process in plans[name].processes}
    for process, documented in DOCUMENTED[name].items():
        assert missing(processes[process], documented) == [], process
