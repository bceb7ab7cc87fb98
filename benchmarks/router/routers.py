"""Starts and stops each router with mock engines of its own: two prefill and two decode."""

import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.router import messages

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
BOOTSTRAP_PORT = "8998"  # of SGLang's prefill engines; the mock engines have none, and no router connects to it


@dataclass(frozen=True)
class Options:
    """How routers are started."""

    peers_bin: Path | None  # folder with sglang-router and vllm-router
    workers: int  # processes of our router


@dataclass(frozen=True)
class Mocks:
    """Where the mock engines answer."""

    prefill: list[int]
    decode: list[int]
    direct: list[int]


@dataclass(frozen=True)
class Endpoint:
    """Where requests are sent, and the process that answers."""

    port: int
    process: psutil.Popen

    def rss_mb(self) -> float:
        """Resident memory of the process and all its descendants, in MB; what they share counts for each."""
        return float(sum(member.memory_info().rss for member in self._family())) / 1e6

    def cpu_s(self) -> float:
        """CPU time that the process and its descendants have used, in seconds."""
        times = [member.cpu_times() for member in self._family()]
        return float(sum(time.user + time.system for time in times))

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@dataclass(frozen=True)
class Contender:
    """One column of the table."""

    name: str
    live_path: str  # a GET that the router answers by itself
    command: Callable[[Options, Mocks, int, Path], list[str]] | None  # None: no router, straight to a mock engine
    registers_as: str = ""  # the engines register themselves, speaking this protocol; else the command names them
    loads: tuple[str, ...] = ()  # the only ones that it is measured under; empty: all


def _sglang_router(options: Options, mocks: Mocks, port: int, folder: Path) -> list[str]:
    command = [_peer(options, "sglang-router"), "launch", "--pd-disaggregation", "--policy", "power_of_two"]
    command += ["--worker-startup-check-interval", "1", "--log-level", "error"]
    return command + _peer_listens(port) + _engines(mocks, BOOTSTRAP_PORT)


def _vllm_router(options: Options, mocks: Mocks, port: int, folder: Path) -> list[str]:
    command = [_peer(options, "vllm-router"), "--vllm-pd-disaggregation", "--kv-connector", "nixl"]
    command += ["--policy", "power_of_two", "--worker-startup-check-interval", "1", "--log-level", "error"]
    return command + _peer_listens(port) + _engines(mocks)


def _pdctl(protocol: str, *, logging: bool = True) -> Callable[[Options, Mocks, int, Path], list[str]]:
    def command(options: Options, mocks: Mocks, port: int, folder: Path) -> list[str]:
        command = [sys.executable, "-m", "pdctl.router", "--host", "127.0.0.1", "--port", str(port), "--splitwise"]
        command += ["--prefill-policy", "process_tokens", "--decode-policy", "request_num"]
        command += ["--workers", str(options.workers)]
        if logging:
            command += ["--access-log", str(folder / "access.log")]
        if protocol == "builtin":
            return command
        bootstrap = [BOOTSTRAP_PORT] if protocol == "sglang" else []
        return [*command, "--protocol", protocol, *_engines(mocks, *bootstrap)]

    return command


CONTENDERS = (
    Contender("direct", "/health", None),
    Contender("sglang-router", "/liveness", _sglang_router),
    Contender("pdctl-sglang", "/health/live", _pdctl("sglang")),
    Contender("vllm-router", "/liveness", _vllm_router),
    Contender("pdctl-vllm-nixl", "/health/live", _pdctl("vllm-nixl")),
    Contender(
        "pdctl-vllm-nixl-no-log", "/health/live", _pdctl("vllm-nixl", logging=False), loads=("stream64", "plain64")
    ),
    Contender("pdctl-builtin", "/health/live", _pdctl("builtin"), registers_as="builtin"),
)


@contextmanager
def running(contender: Contender, options: Options) -> Iterator[Endpoint]:
    """Run mock engines and the router; all of it has ended when the context is left."""
    port = free_port()
    mock = [sys.executable, "-m", "benchmarks.router.mock"]
    if contender.registers_as:
        mock += ["--register", f"http://127.0.0.1:{port}", "--protocol", contender.registers_as]
    with (
        tempfile.TemporaryDirectory() as name,
        _process(mock, Path(name, "mock.log"), stdout=subprocess.PIPE) as engines,
    ):
        mocks = Mocks(**json.loads(_first_line(engines)))
        if contender.command is None:
            yield Endpoint(mocks.direct[0], engines)
            return
        command = contender.command(options, mocks, port, Path(name))
        with _process(command, Path(name, "router.log")) as router:
            endpoint = Endpoint(port, router)
            _wait_until_serving(endpoint)
            yield endpoint


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _process(command: list[str], log: Path, stdout: int | None = None) -> Iterator[psutil.Popen]:
    """Run a process, and end it with all its descendants; what it said is shown if something fails meanwhile."""
    with log.open("wb") as output:
        process = psutil.Popen(command, stdout=stdout or output, stderr=output)
    try:
        yield process
    except BaseException:
        print(f"--- the end of {log.name} of {command}:\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise
    finally:
        _end(process)


def _end(process: psutil.Popen) -> None:
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    for member in family:
        member.terminate()
    for member in psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)[1]:
        member.kill()
    process.wait(STOP_TIMEOUT_S)


def _first_line(process: psutil.Popen) -> str:
    if not select.select([process.stdout], [], [], READY_TIMEOUT_S)[0]:
        raise TimeoutError(f"the mock engines said nothing within {READY_TIMEOUT_S:.0f} s")
    line: bytes = process.stdout.readline()
    return line.decode()


def _wait_until_serving(endpoint: Endpoint) -> None:
    """Wait for the first answer of 200 to a real request."""
    body = messages.chat_request(streaming=False).partition(b"\r\n\r\n")[2]
    url = f"http://127.0.0.1:{endpoint.port}/v1/chat/completions"
    headers = {"content-type": "application/json"}
    last: object = None
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(trust_env=False, verify=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if endpoint.process.poll() is not None:
                raise RuntimeError(f"the router ended with {endpoint.process.returncode}")
            try:
                answer = client.post(url, content=body, headers=headers)
                if answer.status_code == 200:
                    return
                last = answer.text
            except httpx.TransportError as error:
                last = error
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer 200 within {READY_TIMEOUT_S:.0f} s; the last time: {last}")


def _peer(options: Options, name: str) -> str:
    if options.peers_bin is None:
        raise SystemExit(f"{name}: say with --peers-bin in which folder it is")
    return str(options.peers_bin / name)


def _peer_listens(port: int) -> list[str]:
    listens = ["--host", "127.0.0.1", "--port", str(port)]
    return [*listens, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]


def _engines(mocks: Mocks, *bootstrap: str) -> list[str]:
    arguments: list[str] = []
    for port in mocks.prefill:
        arguments += ["--prefill", f"http://127.0.0.1:{port}", *bootstrap]
    for port in mocks.decode:
        arguments += ["--decode", f"http://127.0.0.1:{port}"]
    return arguments
