"""Engines of FastDeploy's stand-in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_processes import Process
from standin_processes import ASKED, StandIn, free_ports, standin

MODULE = "fastdeploy.entrypoints.openai.api_server"
MULTI = "fastdeploy.entrypoints.openai.multi_api_server"
MODEL = ("--model", "PaddlePaddle/ERNIE-4.5-0.3B-Paddle")


@dataclass
class Pair:
    """Two engines, where P and D talk, and the router at which they have registered, if it is a real one."""

    prefill: StandIn
    decode: StandIn
    prefill_comm: int
    decode_comm: int
    decode_rdma: int
    router: Process | None = None

    def body(self, identity: str, **changes: object) -> dict[str, Any]:
        """What a router sends; `changes` are of disaggregate_info."""
        info = {
            "prefill_ip": "127.0.0.1",
            "decode_ip": "127.0.0.1",
            "prefill_connector_port": self.prefill_comm,
            "decode_connector_port": self.decode_comm,
            "decode_device_ids": ["1"],
            "decode_rdma_ports": [self.decode_rdma],
            "transfer_protocol": "ipc",
            "decode_tp_size": 1,
        }
        return ASKED | {"request_id": identity, "disaggregate_info": info | changes}


@asynccontextmanager
async def engines(router: int, logs: Path) -> AsyncIterator[Pair]:
    """A P and a D that are ready, and register at a port."""
    prefill_comm, decode_comm, rdma, metrics = free_ports(4)
    d_flags = ("--pd-comm-port", decode_comm, "--rdma-comm-ports", rdma, "--metrics-port", metrics)
    async with (
        fd("prefill", router, "--pd-comm-port", prefill_comm, logs=logs) as prefill,
        fd("decode", router, *d_flags, logs=logs, CUDA_VISIBLE_DEVICES="1", STANDIN_PEER_S="60") as decode,
    ):
        await prefill.healthy()
        await decode.healthy()
        yield Pair(prefill, decode, prefill_comm, decode_comm, rdma)


@asynccontextmanager
async def fd(role: str, router: int, *flags: object, logs: Path, **env: str) -> AsyncIterator[StandIn]:
    """An engine that registers soon."""
    [port] = free_ports(1)
    env = {"FD_LOG_DIR": str(logs / f"{role}-{port}"), "STANDIN_REGISTER_S": "0.2"} | env
    pd = ("--splitwise-role", role, "--router", f"0.0.0.0:{router}")
    async with standin(MODULE, *MODEL, *pd, *flags, port=port, **env) as found:
        yield found
