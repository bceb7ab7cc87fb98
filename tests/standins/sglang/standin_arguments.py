"""SGLang's command line and environment."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from standin_faults import Role, start_fault
from standin_flags import Flags, address, are_nics, port, positive

BACKENDS = ("mooncake", "nixl", "ascend", "mori", "fake")
_DP_ATTENTION_PORT = 233  # where its processes meet, from that of the API, unless they are told where
ROLES: dict[str, Role] = {"null": "mixed", "prefill": "prefill", "decode": "decode"}
_VARIABLES = {  # SGLANG_DISAGGREGATION_..., and defaults
    "BOOTSTRAP_TIMEOUT": 300.0,
    "WAITING_TIMEOUT": 300.0,
    "HEARTBEAT_INTERVAL": 5.0,
    "HEARTBEAT_MAX_FAILURE": 2.0,
}
_OTHER_VARIABLES = (
    "QUEUE_SIZE",
    "THREAD_POOL_SIZE",
    "NIXL_BACKEND",
    "NIXL_BACKEND_PARAMS",
    "ENGINE_INIT_TIMEOUT",
    "DEFERRED_DECODE_KV_RELEASE_TIMEOUT",
)


@dataclass(frozen=True)
class Arguments:
    """What an SGLang process is told."""

    role: Role
    model: str
    served_model_name: str
    host: str
    port: int
    backend: str
    bootstrap_port: int
    has_bootstrap: bool
    allocation_policy: str
    metrics: bool
    context_length: int | None
    api_key: str | None
    dp: int
    nodes: int
    node_rank: int
    head: tuple[str, int] | None  # where its processes meet
    dp_attention: bool
    bootstrap_timeout: float  # seconds
    waiting_timeout: float  # seconds
    heartbeat_interval: float  # seconds
    heartbeat_failures: int


def parse(argv: list[str] | None) -> Arguments:
    """Read command line and environment; the process ends with 2 if anything is wrong."""
    flags = _flags()
    given = flags.parse_args(argv)
    _check_nodes(flags, given)
    _check_environment(flags, given)
    role = ROLES[given.disaggregation_mode]
    times = {name: flags.check_number(f"SGLANG_DISAGGREGATION_{name}", value) for name, value in _VARIABLES.items()}
    bootstraps = (role == "prefill" or given.enable_pd_role_switch) and start_fault() != "no-bootstrap"
    return Arguments(
        role=role,
        model=given.model_path,
        served_model_name=given.served_model_name or given.model_path,
        host=given.host,
        port=given.port,
        backend=given.disaggregation_transfer_backend,
        bootstrap_port=given.disaggregation_bootstrap_port,
        has_bootstrap=bootstraps and given.node_rank == 0,
        allocation_policy=given.disaggregation_decode_allocation_policy,
        metrics=given.enable_metrics,
        context_length=given.context_length,
        api_key=given.api_key,
        dp=given.dp_size,
        nodes=given.nnodes,
        node_rank=given.node_rank,
        head=_head(given),
        dp_attention=given.enable_dp_attention,
        bootstrap_timeout=times["BOOTSTRAP_TIMEOUT"],
        waiting_timeout=times["WAITING_TIMEOUT"],
        heartbeat_interval=times["HEARTBEAT_INTERVAL"],
        heartbeat_failures=int(times["HEARTBEAT_MAX_FAILURE"]),
    )


def _flags() -> Flags:
    flags = Flags("sglang.launch_server")
    add = flags.add_argument
    add("--model-path", "--model", required=True)
    add("--host", default="127.0.0.1")
    add("--port", type=port, default=30000)
    add("--tp-size", "--tensor-parallel-size", "--tp", type=positive, default=1)
    add("--dp-size", "--data-parallel-size", "--dp", type=positive, default=1)
    add("--base-gpu-id", type=int, default=0)
    add("--nnodes", type=positive, default=1)
    add("--node-rank", type=int, default=0)
    add("--dist-init-addr", type=address)
    add("--served-model-name")
    add("--context-length", type=positive)
    add("--api-key")
    add("--load-balance-method", choices=("auto", "round_robin", "follow_bootstrap_room"), default="auto")
    add("--disaggregation-mode", choices=tuple(ROLES), default="null")
    add("--disaggregation-transfer-backend", choices=BACKENDS, default="mooncake")
    add("--disaggregation-bootstrap-port", type=port, default=8998)
    add("--disaggregation-ib-device")
    add("--disaggregation-decode-allocation-policy", choices=("early", "prefill_complete"), default="early")
    flags.switch(
        "--enable-metrics",
        "--enable-dp-attention",
        "--enable-pd-role-switch",
        "--disaggregation-enable-kv-checksum",
        "--disaggregation-decode-enable-radix-cache",
        "--disaggregation-decode-enable-offload-kvcache",
        "--disable-radix-cache",
        "--disable-cuda-graph",
        "--skip-server-warmup",
        "--trust-remote-code",
    )
    flags.accept(
        int,
        *("--disaggregation-decode-extra-slots", "--disaggregation-decode-polling-interval"),
        *("--disaggregation-decode-host-receive-threshold", "--optimistic-prefill-attempts"),
        *("--max-running-requests", "--chunked-prefill-size", "--page-size", "--pp-size", "--ep-size"),
        *("--random-seed", "--watchdog-timeout", "--max-total-tokens"),
    )
    flags.accept(float, "--mem-fraction-static")
    flags.accept(
        str,
        *("--disaggregation-decode-retraction-backup", "--dtype", "--quantization", "--kv-cache-dtype"),
        *("--attention-backend", "--tokenizer-path", "--chat-template", "--log-level", "--load-format"),
        *("--reasoning-parser", "--tool-call-parser", "--schedule-policy"),
    )
    return flags


def _check_nodes(flags: Flags, given: argparse.Namespace) -> None:
    if not 0 <= given.node_rank < given.nnodes:
        flags.error(f"argument --node-rank: {given.node_rank} is not below --nnodes {given.nnodes}")
    if given.nnodes > 1 and given.dist_init_addr is None:
        flags.error("argument --dist-init-addr: needed with --nnodes")
    if given.tp_size % given.nnodes:
        flags.error(f"argument --tp-size: {given.tp_size} ranks do not spread over {given.nnodes} nodes")
    if given.enable_dp_attention and given.tp_size % given.dp_size:
        flags.error(f"argument --dp-size: {given.dp_size} does not divide --tp-size {given.tp_size}")


def _head(given: argparse.Namespace) -> tuple[str, int] | None:
    if given.dist_init_addr is None and given.enable_dp_attention:
        return "127.0.0.1", given.port + _DP_ATTENTION_PORT
    return given.dist_init_addr


def _check_environment(flags: Flags, given: argparse.Namespace) -> None:
    # With DP attention the data parallel ranks share the GPUs of the tensor parallel ones.
    gpus = given.tp_size * (1 if given.enable_dp_attention else given.dp_size) // given.nnodes
    flags.check_gpus(gpus, given.base_gpu_id)
    flags.check_nics("UCX_NET_DEVICES", with_ports=True)
    if given.disaggregation_ib_device is not None and not _is_ib_device(given.disaggregation_ib_device, gpus):
        flags.error(f"argument --disaggregation-ib-device: {given.disaggregation_ib_device!r} names no NICs")
    known = {f"SGLANG_DISAGGREGATION_{name}" for name in (*_VARIABLES, *_OTHER_VARIABLES)}
    for name in os.environ:
        if name.startswith("SGLANG_DISAGGREGATION_") and name not in known:
            flags.error(f"environment: {name} is no variable of SGLang")


def _is_ib_device(text: str, gpus: int) -> bool:
    """Names, or a JSON object from the process's GPU numbers to names, or a file with one."""
    if not text.endswith(".json") and not text.startswith("{"):
        return are_nics(text.split(","))
    try:
        nics = json.loads(text if text.startswith("{") else Path(text).read_text())
        return {int(gpu) for gpu in nics} == set(range(gpus)) and all(are_nics(of.split(",")) for of in nics.values())
    except (OSError, ValueError, AttributeError):
        return False
