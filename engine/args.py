"""The engine's command line. What is not built is refused in one line, never ignored. Imports no torch: it is quick."""

import argparse
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeVar

_Item = TypeVar("_Item")
SplitwiseRole = Literal["prefill", "decode", "mixed"]
DType = Literal["auto", "bfloat16", "float32"]

TRANSFER_PROTOCOLS = ("ipc", "rdma", "tcp")

_ONE_PROCESS = "this engine is one process and has no such queue"


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """What one engine process was asked to do."""

    model: str
    served_model_name: str
    host: str = "127.0.0.1"
    advertise_host: str = "127.0.0.1"  # where the router and the peers reach this engine
    port: int = 8000  # 0: any free one, as for the other ports
    metrics_port: int = 0
    pd_comm_port: int = 0
    rdma_comm_port: int = 0
    role: SplitwiseRole = "mixed"
    router: str | None = None  # "host:port"
    transfer_protocols: tuple[str, ...] = TRANSFER_PROTOCOLS  # the best first
    kv_checksum: bool = False
    max_model_len: int | None = None  # None: the model's own
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    num_blocks: int | None = None  # None: as many as the memory carries
    prefix_caching: bool = True
    dtype: DType = "auto"
    threads: int | None = None  # None: torch's choice


def parse_args(argv: list[str] | None = None) -> EngineArgs:
    """Read the command line; a wrong or unbuilt choice ends the process with one line on stderr and status 2."""
    parser = _parser()
    options = parser.parse_args(argv)
    problem = _unbuilt(options) or _inconsistent(options)
    if problem:
        parser.error(problem)
    return _engine_args(options)


def _engine_args(options: argparse.Namespace) -> EngineArgs:
    return EngineArgs(
        model=options.model,
        served_model_name=options.served_model_name or options.model,
        host=options.host,
        advertise_host=options.advertise_host or options.host,
        port=options.port,
        metrics_port=options.metrics_port,
        pd_comm_port=options.pd_comm_port[0] if options.pd_comm_port else 0,
        rdma_comm_port=options.rdma_comm_ports[0] if options.rdma_comm_ports else 0,
        role=options.splitwise_role,
        router=options.router,
        transfer_protocols=tuple(options.cache_transfer_protocol),
        kv_checksum=options.kv_checksum,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        num_blocks=options.num_gpu_blocks_override,
        prefix_caching=not options.no_prefix_caching,
        dtype=options.dtype,
        threads=options.threads,
    )


def _unbuilt(options: argparse.Namespace) -> str | None:
    """Name the first choice that this engine cannot honour."""
    if options.tensor_parallel_size > 1:
        return "--tensor-parallel-size: only 1 is built; start one engine per device"
    if options.data_parallel_size > 1:
        return "--data-parallel-size: only 1 is built; start more engines behind the router"
    if options.quantization is not None:
        return "--quantization: not built; the weights run in the types of their files (GGUF files may be quantized)"
    if options.engine_worker_queue_port is not None:
        return f"--engine-worker-queue-port: {_ONE_PROCESS}; leave the flag out"
    if options.cache_queue_port is not None:
        return f"--cache-queue-port: {_ONE_PROCESS}; leave the flag out"
    return None


def _inconsistent(options: argparse.Namespace) -> str | None:
    """Name the first choice that contradicts another."""
    pd_ports, data_ports = options.pd_comm_port or [], options.rdma_comm_ports or []
    ranks = options.data_parallel_size * options.tensor_parallel_size
    if len(pd_ports) > options.data_parallel_size:
        return f"--pd-comm-port: {len(pd_ports)} ports for --data-parallel-size {options.data_parallel_size}"
    if data_ports and len(data_ports) != ranks:
        return f"--rdma-comm-ports: {len(data_ports)} ports for {ranks} rank(s): one for each, dp x tp"
    for flag, ports in (("--pd-comm-port", pd_ports), ("--rdma-comm-ports", data_ports)):
        if options.splitwise_role != "decode" and any(ports):
            return f"{flag}: a {options.splitwise_role} engine receives no KV: only decode engines have it"
    if options.max_num_batched_tokens < options.max_num_seqs:
        return "--max-num-batched-tokens must be at least --max-num-seqs: a step needs one token for each sequence"
    named = [port for port in (options.port, options.metrics_port, *pd_ports, *data_ports) if port]
    if len(set(named)) < len(named):
        return "--port, --metrics-port, --pd-comm-port and --rdma-comm-ports must differ"
    if len(set(options.cache_transfer_protocol)) < len(options.cache_transfer_protocol):
        return "--cache-transfer-protocol: a protocol is named twice"
    if options.router and not options.advertise_host and _is_wildcard(options.host):
        return f"--host {options.host}: the router needs one address to reach; add --advertise-host ADDRESS"
    return None


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m engine", description="An OpenAI-compatible LLM engine.", allow_abbrev=False)
    _add_serving_flags(parser)
    _add_disaggregation_flags(parser)
    _add_engine_flags(parser)
    return parser


def _add_serving_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("serving").add_argument
    add("--model", required=True, metavar="MODEL", help="alias, folder, GGUF file or hub id")
    add("--served-model-name", metavar="NAME", help="the model's name in the API (default: --model)")
    add("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    add("--advertise-host", metavar="HOST", help="address that others reach this engine at (default: --host)")
    add("--port", type=_port, default=8000, help="API port; 0: any free one (default: %(default)s)")
    add("--metrics-port", type=_port, default=0, metavar="PORT", help="Prometheus port; 0: any free one (default)")


def _add_disaggregation_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("prefill/decode disaggregation").add_argument
    add("--splitwise-role", choices=("prefill", "decode", "mixed"), default="mixed", help="default: %(default)s")
    add("--router", type=_endpoint, metavar="HOST:PORT", help="router to register with")
    add(
        "--cache-transfer-protocol",
        type=_protocols,
        default=list(TRANSFER_PROTOCOLS),
        metavar="LIST",
        help="ways to move KV, the best first: the first that both engines can use is used (default: ipc,rdma,tcp)",
    )
    add("--kv-checksum", action="store_true", help="prefill: have decode check each prompt's KV")
    add(
        "--pd-comm-port",
        type=_ports,
        metavar="PORT",
        help="decode: KV handshake; 0: any free one (default)",
    )
    add(
        "--rdma-comm-ports",
        type=_ports,
        metavar="PORTS",
        help="decode: KV data connections (streams of tcp, queue pairs of rdma), one a rank; 0: any free (default)",
    )
    add("--engine-worker-queue-port", metavar="PORTS", help="not built: one process needs no queue")
    add("--cache-queue-port", metavar="PORTS", help="not built: one process needs no queue")


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--tensor-parallel-size", type=_positive, default=1, metavar="N", help="only 1 is built")
    add("--data-parallel-size", type=_positive, default=1, metavar="N", help="only 1 is built")
    add("--max-model-len", type=_positive, metavar="TOKENS", help="prompt plus answer (default: the model's own)")
    add("--max-num-seqs", type=_positive, default=64, metavar="N", help="sequences in one batch (default: %(default)s)")
    add("--max-num-batched-tokens", type=_positive, default=512, metavar="N", help="tokens in one step (default: 512)")
    add("--num-gpu-blocks-override", type=_positive, metavar="N", help="KV blocks (default: by free memory)")
    add("--no-prefix-caching", action="store_true", help="compute each prompt whole")
    add("--quantization", metavar="METHOD", help="not built")
    add("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of the computation")
    add("--threads", type=_positive, metavar="N", help="CPU threads of the computation (default: torch's choice)")


def _number(text: str, low: int, high: float, what: str) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


def _positive(text: str) -> int:
    return _number(text, 1, float("inf"), "a whole number of at least 1")


def _port(text: str) -> int:
    return _number(text, 0, 65535, "a port (0..65535)")


def _ports(text: str) -> list[int]:
    return _comma_list(text, _port)


def _protocols(text: str) -> list[str]:
    return _comma_list(text, _protocol)


def _protocol(text: str) -> str:
    if text not in TRANSFER_PROTOCOLS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a transfer protocol ({', '.join(TRANSFER_PROTOCOLS)})")
    return text


def _comma_list(text: str, convert: Callable[[str], _Item]) -> list[_Item]:
    return [convert(item.strip()) for item in text.split(",")]


def _endpoint(text: str) -> str:
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not host:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    _port(port)
    return f"{host}:{port}"
