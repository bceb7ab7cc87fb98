"""Plans for FastDeploy beside the commands of its documentation, as files: tests/planning/golden/.

The commands are those of its documentation and of its examples/splitwise, with the address of the router's host.
"""

from pathlib import Path

import pytest
from golden_commands import GOLDEN, file_text, missing
from inventories import inventory_of

from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan
from pdctl.profiles import load_profile
from pdctl.topology.loading import load_topology
from tests.agent.sysfs_trees import hgx_h100

EXAMPLES = Path(__file__).parents[2] / "examples/fastdeploy"
API = "python -m fastdeploy.entrypoints.openai.api_server"
MULTI_API = "python -m fastdeploy.entrypoints.openai.multi_api_server"
SMALL, MEDIUM, LARGE = (
    "PaddlePaddle/ERNIE-4.5-0.3B-Paddle",
    "PaddlePaddle/ERNIE-4.5-21B-A3B-Paddle",
    "ERNIE-4.5-300B-A47B-BF16",
)
V1 = "FD_DEBUG=1 KVCACHE_GDRCOPY_FLUSH_ENABLE=1 ENABLE_V1_KVCACHE_SCHEDULER=1"
V1_ROUTER = "python -m fastdeploy.router.launch --port 52700 --splitwise"


def v1_engine(role: str, gpus: str, first: int, tp: int, rdma: str) -> str:
    ports = f"--port {first} --metrics-port {first + 1} --engine-worker-queue-port {first + 2}"
    ports += f" --cache-queue-port {first + 3} --pd-comm-port {first + 4} --rdma-comm-ports {rdma}"
    return (
        f"{V1} CUDA_VISIBLE_DEVICES={gpus} {API} --model {SMALL} {ports} --tensor-parallel-size {tp}"
        f" --cache-transfer-protocol rdma --splitwise-role {role} --router 10.0.0.1:52700"
    )


def v1_ranks(role: str, gpus: str) -> str:
    return (
        f"{V1} CUDA_VISIBLE_DEVICES={gpus} {MULTI_API} --num-servers 2 --args --model {MEDIUM} --tensor-parallel-size 1"
        f" --data-parallel-size 2 --splitwise-role {role} --router 10.0.0.1:52700"
    )


def node(role: str, gpus: str, nics: str, first: int) -> str:
    ports = f"--port {first} --metrics-port {first + 1} --engine-worker-queue-port {first + 2}"
    ports += f" --cache-queue-port {first + 3} --rdma-comm-ports 7671,7672,7673,7674 --pd-comm-port 2334"
    return (
        f"CUDA_VISIBLE_DEVICES={gpus} ENABLE_V1_KVCACHE_SCHEDULER=0 KVCACHE_RDMA_NICS={nics} {API} --model {LARGE}"
        f" {ports} --tensor-parallel-size 4 --quantization wint4 --cache-transfer-protocol rdma,ipc"
        f" --splitwise-role {role}"
    )


DOCUMENTED = {
    "quick-start": {
        "router": "fd-router --port 30000 --splitwise",
        "prefill-0": f"CUDA_VISIBLE_DEVICES=0 {API} --model {SMALL} --port 31000 --splitwise-role prefill"
        " --router 10.0.0.1:30000",
        "decode-0": f"CUDA_VISIBLE_DEVICES=1 {API} --model {SMALL} --port 32000 --splitwise-role decode"
        " --router 10.0.0.1:30000",
    },
    "tp1": {
        "router": V1_ROUTER,
        "prefill-0": v1_engine("prefill", "0", 52400, 1, "52405"),
        "decode-0": v1_engine("decode", "1", 52500, 1, "52505"),
    },
    "tp2": {
        "router": V1_ROUTER,
        "prefill-0": v1_engine("prefill", "0,1", 52400, 2, "52405,52406"),
        "decode-0": v1_engine("decode", "2,3", 52500, 2, "52505,52506"),
    },
    "dp2": {"router": V1_ROUTER, "prefill-0": v1_ranks("prefill", "4,5"), "decode-0": v1_ranks("decode", "6,7")},
    "mixed": {
        "router": "python -m fastdeploy.router.launch --port 52700",
        "mixed-0": f"{V1} CUDA_VISIBLE_DEVICES=0 {API} --splitwise-role mixed --router 10.0.0.1:52700",
        "mixed-1": f"{V1} CUDA_VISIBLE_DEVICES=1 {API} --splitwise-role mixed --router 10.0.0.1:52700",
    },
    # Its own has Redis as the scheduler, --scheduler-name splitwise and its other flags, and no router.
    "two-nodes": {
        "prefill-0": node("prefill", "0,1,2,3", "mlx5_0,mlx5_3,mlx5_4,mlx5_5", 8180),
        "decode-0": node("decode", "4,5,6,7", "mlx5_6,mlx5_9,mlx5_10,mlx5_11", 8184),
    },
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    host = inventory_of(hgx_h100(tmp_path_factory.mktemp("sysfs")))
    return {example: plan_of(example, host) for example in DOCUMENTED}


def plan_of(example: str, host: Inventory) -> Plan:
    topology = load_topology(EXAMPLES / f"{example}.yaml")
    prepared = "/prepared/bin/python" if "node1" in topology.hosts else None
    hosts = {
        name: host.model_copy(update={"address": f"10.0.0.{number}", "prepared_python": prepared})
        for number, name in enumerate(topology.hosts, 1)
    }
    return make_plan(topology, load_profile(topology.engine), hosts)


@pytest.mark.parametrize("example", DOCUMENTED)
def test_the_plan_is_the_one_on_file(example: str, plans: dict[str, Plan]):
    assert file_text(plans[example]) == (GOLDEN / f"fastdeploy-{example}.txt").read_text()


@pytest.mark.parametrize("example", DOCUMENTED)
def test_the_plan_has_all_that_is_documented(example: str, plans: dict[str, Plan]):
    processes = {process.name: process for process in plans[example].processes}
    for name, documented in DOCUMENTED[example].items():
        assert missing(processes[name], documented) == [], name


def test_the_mixed_router_is_not_told_of_prefill_and_decode(plans: dict[str, Plan]):
    assert "--splitwise" not in plans["mixed"].router.argv
