"""FastDeploy's command line and environment."""

import argparse
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from standin_faults import Role
from standin_flags import Flags, address, port, ports, positive

_TRANSFERS = ("ipc", "rdma")


@dataclass(frozen=True)
class Arguments:
    """What one API server is told: of lists, its own data parallel rank's part. No port: any free one."""

    role: Role
    model: str
    served_model_name: str
    host: str
    port: int
    metrics_port: int | None
    controller_port: int | None
    worker_queue_port: int
    cache_queue_port: int
    pd_comm_port: int
    rdma_comm_ports: tuple[int, ...]
    tp: int
    dp: int
    gpus: tuple[str, ...]
    transfers: tuple[str, ...]
    router: tuple[str, int] | None
    max_model_len: int | None
    blocks: int
    api_key: str | None
    ips: tuple[str, ...]  # of an engine on several hosts, the head's first
    node: int
    wait_for_decode: float  # seconds
    asks_decode_again: bool
    log_dir: Path


def parse(argv: list[str] | None) -> Arguments:
    """Read command line and environment; the process ends with 2 if anything is wrong."""
    flags = _flags()
    given = flags.parse_args(argv)
    dp, tp, rank = given.data_parallel_size, given.tensor_parallel_size, given.local_data_parallel_id
    _check_parallelism(flags, given)
    _check_ports(flags, given)
    node = _node(flags, given)
    nodes = len(given.ips or ["this"])
    if given.nnodes is not None and given.nnodes != nodes:
        flags.error(f"argument --nnodes: {given.nnodes}, but --ips has {nodes}")
    if tp * dp % nodes:
        flags.error(f"argument --tensor-parallel-size: {tp * dp} ranks do not spread over {nodes} hosts")
    if given.splitwise_role != "mixed" and given.router is None:
        flags.error(f"argument --router: needed with --splitwise-role {given.splitwise_role}")
    gpus = flags.check_gpus(tp * dp // nodes)
    flags.check_nics("KVCACHE_RDMA_NICS")
    again = os.environ.get("PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES", "1")
    return Arguments(
        role=given.splitwise_role,
        model=given.model,
        served_model_name=given.served_model_name or given.model,
        host=given.host,
        port=given.port,
        metrics_port=given.metrics_port,
        controller_port=given.controller_port,
        worker_queue_port=_of_rank(given.engine_worker_queue_port, rank),
        cache_queue_port=_of_rank(given.cache_queue_port, rank),
        pd_comm_port=_of_rank(given.pd_comm_port, rank),
        rdma_comm_ports=tuple((given.rdma_comm_ports or [0] * tp * dp)[rank * tp : (rank + 1) * tp]),
        tp=tp,
        dp=dp,
        gpus=tuple(gpus[rank * tp : (rank + 1) * tp] if nodes == 1 else gpus),
        transfers=tuple(given.cache_transfer_protocol),
        router=given.router,
        max_model_len=given.max_model_len,
        blocks=given.num_gpu_blocks_override or 1024,
        api_key=os.environ.get("FD_API_KEY") or given.api_key,
        ips=tuple(given.ips or ()),
        node=node,
        wait_for_decode=flags.check_number("FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS", 30.0),
        asks_decode_again=again == "1",
        log_dir=_log_dir(flags),
    )


def _flags() -> Flags:
    flags = Flags("fastdeploy.entrypoints.openai.api_server")
    add = flags.add_argument
    add("--model", required=True)
    add("--host", default="0.0.0.0")
    add("--port", type=port, default=8000)
    add("--metrics-port", type=port)
    add("--controller-port", type=_port_or_none)
    add("--engine-worker-queue-port", type=ports)
    add("--cache-queue-port", type=ports)
    add("--pd-comm-port", type=ports)
    add("--rdma-comm-ports", type=ports)
    add("--cache-transfer-protocol", type=_transfers, default="ipc,rdma")
    add("--splitwise-role", choices=("mixed", "prefill", "decode"), default="mixed")
    add("--router", type=address)
    add("--tensor-parallel-size", type=positive, default=1)
    add("--data-parallel-size", type=positive, default=1)
    add("--local-data-parallel-id", type=int, default=0)
    add("--ips", type=lambda text: [ip.strip() for ip in text.split(",")])
    add("--nnodes", type=positive)
    add("--served-model-name")
    add("--max-model-len", type=positive)
    add("--num-gpu-blocks-override", type=positive)
    add("--api-key")
    flags.switch(
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill"),
        *("--enable-expert-parallel", "--disable-custom-all-reduce", "--enable-logprob"),
    )
    flags.accept(
        int, "--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--swap-space", "--workers", "--seed"
    )
    flags.accept(float, "--gpu-memory-utilization", "--kv-cache-ratio")
    flags.accept(
        str,
        *("--quantization", "--tokenizer", "--graph-optimization-config", "--speculative-config"),
        *("--reasoning-parser", "--tool-call-parser", "--load-choices"),
    )
    return flags


def _check_parallelism(flags: Flags, given: argparse.Namespace) -> None:
    dp = given.data_parallel_size
    if not 0 <= given.local_data_parallel_id < dp:
        flags.error(f"argument --local-data-parallel-id: {given.local_data_parallel_id} is not below {dp}")
    if dp > 1 and os.environ.get("FD_ENABLE_MULTI_API_SERVER") != "1":
        flags.error("argument --data-parallel-size: multi_api_server and FD_ENABLE_MULTI_API_SERVER=1 are needed")
    if given.enable_expert_parallel and given.tensor_parallel_size > 1:
        flags.error("argument --enable-expert-parallel: needs --tensor-parallel-size 1")


def _check_ports(flags: Flags, given: argparse.Namespace) -> None:
    dp, tp = given.data_parallel_size, given.tensor_parallel_size
    lists = {
        "--engine-worker-queue-port": given.engine_worker_queue_port,
        "--cache-queue-port": given.cache_queue_port,
        "--pd-comm-port": given.pd_comm_port,
    }
    for flag, numbers in lists.items():
        flags.check_count(flag, numbers, dp, f"data parallel size {dp}")
    flags.check_count("--rdma-comm-ports", given.rdma_comm_ports, dp * tp, f"{dp} x {tp} ranks")


def _node(flags: Flags, given: argparse.Namespace) -> int:
    """Which of the hosts in --ips this is: all are started with the same command."""
    if given.ips is None:
        return 0
    if len(set(given.ips)) != len(given.ips):
        flags.error(f"argument --ips: {','.join(given.ips)} names a host twice")
    if len(given.ips) > 1 and given.engine_worker_queue_port is None:
        flags.error("argument --engine-worker-queue-port: needed with --ips, where the other hosts come to")
    own = os.environ.get("STANDIN_HOST_IP") or next((ip for ip in given.ips if _is_local(ip)), None)
    if own not in given.ips:
        flags.error(f"argument --ips: {','.join(given.ips)} does not name this host")
    return int(given.ips.index(own))


def _is_local(ip: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def _log_dir(flags: Flags) -> Path:
    name = os.environ.get("FD_LOG_DIR")
    if not name:
        flags.error("FD_LOG_DIR is not set: engines of one host would share the folder log")
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        flags.error(f"FD_LOG_DIR={name}: {error.strerror}")
    return Path(name)


def _of_rank(numbers: list[int] | None, rank: int) -> int:
    return numbers[rank] if numbers else 0


def _port_or_none(text: str) -> int | None:
    return None if text == "-1" else port(text)


def _transfers(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) != len(names) or not set(names) <= set(_TRANSFERS):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {','.join(_TRANSFERS)}")
    return names
