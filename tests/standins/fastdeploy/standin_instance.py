"""What one API server has: ports that are bound, and what the router is told of it again and again."""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

import aiohttp
from standin_faults import print_error, seconds, start_fault
from standin_flags import bind
from standin_server import Server

from fastdeploy.standin_arguments import Arguments

_REGISTER_S = 5.0
_REGISTER_TIMEOUT_S = 5.0


@dataclass
class Instance:
    """A server's listening sockets, by purpose."""

    arguments: Arguments
    api: socket.socket
    metrics: socket.socket | None
    pd_comm: socket.socket | None  # none where there is no other leg
    worker_queue: socket.socket
    rdma: list[socket.socket]
    others: list[socket.socket]
    host_ip: str

    @property
    def rdma_ports(self) -> list[str]:
        """As they are told: text."""
        return [str(_number(sock)) for sock in self.rdma]

    @property
    def pd_comm_port(self) -> int:
        """0 where there is no other leg."""
        return _number(self.pd_comm) if self.pd_comm else 0

    def registration(self) -> dict[str, Any]:
        """What the router gets."""
        return {
            "role": self.arguments.role,
            "host_ip": self.host_ip,
            "port": self.arguments.port,
            "metrics_port": self.arguments.metrics_port or self.arguments.port,
            "connector_port": self.pd_comm_port,
            "engine_worker_queue_port": _number(self.worker_queue),
            "transfer_protocol": list(self.arguments.transfers),
            "rdma_ports": self.rdma_ports,
            "device_ids": list(self.arguments.gpus),
            "tp_size": self.arguments.tp,
            "version": "",
            "is_paused": False,
            "connected_decodes": [],
        }


def open_instance(arguments: Arguments) -> Instance:
    """Bind every port. EndError if one is taken."""
    here = arguments.ips[0] if arguments.ips else arguments.host
    controller = arguments.controller_port
    split = arguments.role != "mixed"
    return Instance(
        arguments=arguments,
        api=bind(arguments.host, arguments.port, "--port"),
        metrics=bind(here, arguments.metrics_port, "--metrics-port") if arguments.metrics_port else None,
        pd_comm=bind(here, arguments.pd_comm_port, "--pd-comm-port") if split else None,
        worker_queue=bind(here, arguments.worker_queue_port, "--engine-worker-queue-port"),
        rdma=[bind(here, number, "--rdma-comm-ports") for number in arguments.rdma_comm_ports] if split else [],
        others=[
            bind(here, arguments.cache_queue_port, "--cache-queue-port"),
            *([bind(here, controller, "--controller-port")] if controller else []),
        ],
        host_ip=_host_ip(arguments),
    )


async def register(instance: Instance, server: Server) -> None:
    """Tell the router of this server as long as it is healthy, for ever."""
    router = instance.arguments.router
    if router is None or start_fault() == "never-register":
        return
    url = f"http://{router[0]}:{router[1]}/register"
    interval = seconds("STANDIN_REGISTER_S", _REGISTER_S)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REGISTER_TIMEOUT_S)) as http:
        while True:
            if server.healthy:
                await _post(http, url, instance.registration())
            await asyncio.sleep(interval)


async def _post(http: aiohttp.ClientSession, url: str, registration: dict[str, Any]) -> None:
    try:
        async with http.post(url, json=registration) as response:
            if response.status != 200:
                print_error(f"Send server info to router failed: {response.status}, {await response.text()}")
    except (OSError, aiohttp.ClientError, TimeoutError) as error:
        print_error(f"Send server info to router failed: {error}")


def _host_ip(arguments: Arguments) -> str:
    """The address under which the router and other engines reach this host."""
    if "STANDIN_HOST_IP" in os.environ:
        return os.environ["STANDIN_HOST_IP"]
    if arguments.ips:
        return arguments.ips[arguments.node]
    if arguments.router is None:
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in arguments.router[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(arguments.router)
        return str(probe.getsockname()[0])


def _number(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])
