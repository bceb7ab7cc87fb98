"""Plans beside the commands that engines' own documentation gives, as files: tests/planning/golden/.

`documented` holds what FastDeploy's documentation and its examples/splitwise say, a flag or variable for each process.
"""

import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from inventories import make_inventory

from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.planner import make_plan
from pdctl.profiles import load_profile
from pdctl.topology.loading import load_topology

EXAMPLES, GOLDEN = Path(__file__).parents[2] / "examples", Path(__file__).with_name("golden")
API = "-m fastdeploy.entrypoints.openai.api_server"
V1 = {"FD_DEBUG=1", "KVCACHE_GDRCOPY_FLUSH_ENABLE=1", "ENABLE_V1_KVCACHE_SCHEDULER=1"}


class Documented(NamedTuple):
    """What a document says of a process."""

    words: str  # that follow each other, without the interpreter
    flags: str
    env: set[str]


def two_engines(tp: int, gpus: tuple[str, str], rdma: tuple[str, str]) -> dict[str, Documented]:
    def engine(role: str, first: int, gpu: str, rdma_ports: str) -> Documented:
        flags = (
            f"--port {first} --metrics-port {first + 1} --engine-worker-queue-port {first + 2}"
            f" --cache-queue-port {first + 3} --pd-comm-port {first + 4} --rdma-comm-ports {rdma_ports}"
            f" --tensor-parallel-size {tp} --cache-transfer-protocol rdma --splitwise-role {role}"
            " --router 10.0.0.1:52700 --model PaddlePaddle/ERNIE-4.5-0.3B-Paddle"
        )
        return Documented(API, flags, {f"CUDA_VISIBLE_DEVICES={gpu}", *V1})

    return {
        "router": Documented("-m fastdeploy.router.launch", "--port 52700 --splitwise", set()),
        "prefill-0": engine("prefill", 52400, gpus[0], rdma[0]),
        "decode-0": engine("decode", 52500, gpus[1], rdma[1]),
    }


def two_nodes() -> dict[str, Documented]:
    flags = (
        "--model ERNIE-4.5-300B-A47B-BF16 --port 8180 --metrics-port 8181 --engine-worker-queue-port 8182"
        " --cache-queue-port 8183 --tensor-parallel-size 4 --quantization wint4 --cache-transfer-protocol rdma,ipc"
        " --rdma-comm-ports 7671,7672,7673,7674 --pd-comm-port 2334 --router 10.0.0.1:30000 --splitwise-role "
    )
    env = {"CUDA_VISIBLE_DEVICES=0,1,2,3"}
    return {role + "-0": Documented(API, flags + role, env) for role in ("prefill", "decode")}


def quick_start() -> dict[str, Documented]:
    def engine(role: str, port: int, gpu: int) -> Documented:
        model = "--model PaddlePaddle/ERNIE-4.5-0.3B-Paddle"
        flags = f"{model} --port {port} --splitwise-role {role} --router 10.0.0.1:30000"
        return Documented(API, flags, {f"CUDA_VISIBLE_DEVICES={gpu}"})

    router = Documented("/usr/local/bin/fd-router", "--port 30000 --splitwise", set())
    return {"router": router, "prefill-0": engine("prefill", 31000, 0), "decode-0": engine("decode", 32000, 1)}


def data_parallel() -> dict[str, Documented]:
    def engine(role: str, gpus: str) -> Documented:
        flags = (
            "--num-servers 2 --data-parallel-size 2 --tensor-parallel-size 1 --router 10.0.0.1:52700"
            f" --splitwise-role {role} --model PaddlePaddle/ERNIE-4.5-21B-A3B-Paddle"
        )
        return Documented(
            "-m fastdeploy.entrypoints.openai.multi_api_server", flags, {f"CUDA_VISIBLE_DEVICES={gpus}", *V1}
        )

    return {"prefill-0": engine("prefill", "4,5"), "decode-0": engine("decode", "6,7")}


def mixed() -> dict[str, Documented]:
    flags = "--splitwise-role mixed --router 10.0.0.1:52700"
    engines = {f"mixed-{gpu}": Documented(API, flags, {f"CUDA_VISIBLE_DEVICES={gpu}"}) for gpu in (0, 1)}
    return {"router": Documented("-m fastdeploy.router.launch", "--port 52700", set()), **engines}


DOCUMENTED = {
    "fastdeploy/quick-start": quick_start(),
    "fastdeploy/tp1": two_engines(1, ("0", "1"), ("52405", "52505")),
    "fastdeploy/tp2": two_engines(2, ("0,1", "2,3"), ("52405,52406", "52505,52506")),
    "fastdeploy/dp2": data_parallel(),
    "fastdeploy/mixed": mixed(),
    "fastdeploy/two-nodes": two_nodes(),
}


def plan_of(example: str) -> Plan:
    topology = load_topology(EXAMPLES / f"{example}.yaml")
    hosts = {name: make_inventory(gpus=8, address=f"10.0.0.{number}") for number, name in enumerate(topology.hosts, 1)}
    return make_plan(topology, load_profile(topology.engine), hosts)


def command_of(process: ProcessPlan) -> str:
    variables = [f"{name}={value}" for name, value in process.env.items()]
    ports = ", ".join(f"{purpose} {port}" for purpose, port in process.ports.items())
    return (
        f"{process.name} on {process.host} at {process.address} ({ports})\n{shlex.join([*variables, *process.argv])}\n"
    )


@pytest.mark.parametrize("example", DOCUMENTED)
def test_the_plan_is_the_one_on_file(example: str):
    expected = (GOLDEN / f"{example.replace('/', '-')}.txt").read_text()
    assert "\n".join(map(command_of, plan_of(example).processes)) == expected


@pytest.mark.parametrize("example", DOCUMENTED)
def test_the_plan_has_every_documented_flag_and_variable(example: str):
    processes = {process.name: process for process in plan_of(example).processes}
    for name, documented in DOCUMENTED[example].items():
        process = processes[name]
        line = f" {shlex.join(process.argv)} "
        assert documented.words in line
        for flag in documented.flags.split(" --"):
            assert f" --{flag.removeprefix('--')} " in line, name
        assert documented.env <= {f"{key}={value}" for key, value in process.env.items()}, name


def test_the_mixed_router_is_not_told_of_prefill_and_decode():
    assert "--splitwise" not in plan_of("fastdeploy/mixed").router.argv
