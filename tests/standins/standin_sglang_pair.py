"""A prefill and a decode of SGLang's stand-in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from router_processes import Process
from standin_processes import ASKED, StandIn, free_ports, standin

MODULE = "sglang.launch_server"
MODEL = ("--model-path", "m")
NIXL = ("--disaggregation-transfer-backend", "nixl")
QUICK = {
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "0.1",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60",
}


@dataclass
class Pair:
    """Two engines, the prefill's bootstrap port, and a router if there is one."""

    prefill: StandIn
    decode: StandIn
    bootstrap: int
    router: Process | None = None

    def body(self, **changes: object) -> dict[str, Any]:
        """What a router sends."""
        place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.bootstrap, "bootstrap_room": 1}
        return ASKED | place | changes


@asynccontextmanager
async def engines(*decode_flags: str, **env: str) -> AsyncIterator[Pair]:
    """A prefill and a decode that are ready."""
    [port] = free_ports(1)
    flags = (*MODEL, *NIXL, "--disaggregation-mode", "decode", *decode_flags)
    async with (
        standin(MODULE, *flags, port=port, **QUICK | env) as decode,
        prefill_engine(**env) as (prefill, bootstrap),
    ):
        await decode.healthy()
        yield Pair(prefill, decode, bootstrap)


@asynccontextmanager
async def prefill_engine(**env: str) -> AsyncIterator[tuple[StandIn, int]]:
    """A prefill that is ready, and its bootstrap port."""
    port, bootstrap = free_ports(2)
    flags = (*MODEL, *NIXL, "--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", bootstrap)
    async with standin(MODULE, *flags, port=port, **QUICK | env) as prefill:
        await prefill.healthy()
        yield prefill, bootstrap
