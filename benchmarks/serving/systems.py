"""Starts and stops the two systems: one prefill and one decode engine of one thread each, and a router."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

READY_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class Endpoint:
    """Where a running system answers, and how long it took to become ready."""

    url: str
    model: str
    ready_s: float


@contextmanager
def pdctl_system(model: Path) -> Iterator[Endpoint]:
    """Run pdctl with its builtin engine on ``model``, a safetensors folder."""
    engine = {"replicas": 1, "args": {"threads": 1, "dtype": "bfloat16", "served-model-name": "smollm2"}}
    topology = {"name": "bench", "model": str(model), "router": {"port": 0}, "prefill": engine, "decode": engine}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bench.yaml")
        file.write_text(json.dumps(topology))
        with deployed(file, {}) as (status, ready_s):
            yield Endpoint(status["endpoint"], "smollm2", ready_s)


@contextmanager
def deployed(topology: Path, environment: dict[str, str]) -> Iterator[tuple[dict[str, Any], float]]:
    """`pdctl up` with a state folder of its own, and `pdctl down` in the end; the status, and seconds to be ready."""
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"PDCTL_STATE_DIR": folder} | environment
        command = [sys.executable, "-m", "pdctl"]
        start = time.perf_counter()
        subprocess.run([*command, "up", "-d", str(topology)], env=variables, check=True)
        ready_s = time.perf_counter() - start
        try:
            status = subprocess.run([*command, "status", "--json"], env=variables, check=True, capture_output=True)
            yield json.loads(status.stdout), ready_s
        finally:
            subprocess.run([*command, "down"], env=variables, check=True)


@contextmanager
def vllm_system(python: Path, model: Path) -> Iterator[Endpoint]:
    """Run vLLM with NixlConnector and vllm-router from the environment of ``python``, as its documentation says."""
    ports = free_ports(4)
    urls = [f"http://127.0.0.1:{port}" for port in ports[:2]]
    start = time.perf_counter()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for core, role in enumerate(("kv_producer", "kv_consumer")):
            command, environment = _vllm_engine(
                python, model, role, port=ports[core], side_port=ports[2 + core], core=core
            )
            stack.enter_context(running(command, environment, logs / f"{role}.log"))
        for url in urls:
            wait_healthy(f"{url}/health")
        endpoint = stack.enter_context(vllm_router(python, list(zip(("prefill", "decode"), urls, strict=True))))
        body = {"model": "smollm2", "prompt": "one two three four", "max_tokens": 2}
        httpx.post(f"{endpoint}/v1/completions", json=body, timeout=READY_TIMEOUT_S).raise_for_status()
        yield Endpoint(endpoint, "smollm2", time.perf_counter() - start)


@contextmanager
def vllm_router(python: Path, engines: list[tuple[str, str]]) -> Iterator[str]:
    """Run vllm-router, with its default policy, before engines by role and URL; its URL once it serves."""
    port, metrics_port = free_ports(2)
    command = [str(python.parent / "vllm-router"), "--vllm-pd-disaggregation", "--kv-connector", "nixl"]
    command += [text for role, url in engines for text in (f"--{role}", url)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    with tempfile.TemporaryDirectory() as logs, running(command, dict(os.environ), Path(logs, "router.log")):
        wait_healthy(f"http://127.0.0.1:{port}/readiness")
        yield f"http://127.0.0.1:{port}"


def _vllm_engine(
    python: Path, model: Path, role: str, *, port: int, side_port: int, core: int
) -> tuple[list[str], dict[str, str]]:
    connector = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_buffer_device": "cpu",
        "kv_load_failure_policy": "fail",
    }
    command = [str(python.parent / "vllm"), "serve", str(model), "--served-model-name", "smollm2"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "bfloat16"]
    command += ["--max-model-len", "8192", "--max-num-seqs", "16", "--kv-transfer-config", json.dumps(connector)]
    environment = os.environ | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port),
        "UCX_TLS": "tcp,self",
        "UCX_NET_DEVICES": "lo",
    }
    return command, environment


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a process, and end it with all its descendants."""
    with log.open("wb") as output:
        process = psutil.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    except BaseException:
        print(f"--- the end of {log.name}:\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise
    finally:
        family = [*process.children(recursive=True), process]
        for member in family:
            member.terminate()
        for member in psutil.wait_procs(family, timeout=15)[1]:
            member.kill()


def wait_healthy(url: str) -> None:
    """Wait until a URL answers 200."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise TimeoutError(f"{url} did not answer 200 within {READY_TIMEOUT_S:.0f} s")


def free_ports(count: int) -> list[int]:
    """Ports below those that Linux gives out by itself: UCX takes its own from there while the engines start."""
    ports: list[int] = []
    for port in random.sample(range(20000, 30000), 1000):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"no {count} free ports between 20000 and 30000")
