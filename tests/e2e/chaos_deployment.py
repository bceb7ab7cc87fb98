"""A router and four engines, two of each role, that a test may kill and stop one by one."""

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.e2e_harness import Cli

MODEL = "smollm2-135m-instruct"
# Of 16 tokens, in an engine's pool. While a prefill engine is stopped, decode keeps the blocks that it may still write:
# what it had in hand, up to 15 blocks for each client, must leave room for what is moved elsewhere.
BLOCKS = 80
LIMIT_S = 90.0  # for whatever is waited for: loading a model takes 5 s on two cores that are free
_BLOCKS_FREE, _WAITING = "pdctl:kv_blocks_free", "pdctl:num_requests_waiting"
_IN_USE = ("pdctl:num_requests_running", _WAITING, "pdctl:num_requests_held", "pdctl:num_requests_reserved")


@dataclass
class Engine:
    """One engine, whose ports stay the same when it is started again."""

    role: str
    port: int
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"{self.role} {self.port}"

    def metric(self, name: str) -> float:
        return metrics(self.url)[name]

    def idle(self) -> bool:
        """Whether it has nothing to do, and all its blocks."""
        figures = metrics(self.url)
        return figures[_BLOCKS_FREE] == BLOCKS and not any(figures[name] for name in _IN_USE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def start_again(self) -> None:
        self.process = _start(self.command, self.environment, self.log)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it keep its memory and its connections, and answer nothing, inside the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@dataclass
class Deployment:
    """All processes, and what the router says of the engines."""

    cli: Cli
    port: int
    token: str
    router: "subprocess.Popen[bytes]"
    engines: list[Engine] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        return [*(engine.process for engine in self.engines), self.router]

    def answers(self) -> bool:
        assert self.router.poll() is None, self.log("router")
        try:
            return get(f"{self.url}/health/live").status_code == 200
        except httpx.ConnectError:
            return False

    def metrics(self) -> dict[str, float]:
        """The router's figures, without the prefix of their names."""
        return {name.removeprefix("pdctl_router_"): value for name, value in metrics(self.url).items()}

    def instance(self, engine: Engine) -> dict[str, Any]:
        """What the router says of an engine; its state is "gone" where it does not know it."""
        instances = get(f"{self.url}/instances").json()
        return next((i for i in instances if i["id"] == f"127.0.0.1:{engine.port}"), {"state": "gone"})

    def wait_for(self, engine: Engine, *states: str) -> None:
        until(lambda: self.instance(engine)["state"] in states, f"{engine.name} to be {' or '.join(states)}")

    def register(self, token: str | None, **fields: object) -> httpx.Response:
        """Register as an engine of this deployment would."""
        payload = {"host_ip": "127.0.0.1", "protocol": "builtin", "transfer_protocol": ["ipc"], "model": MODEL}
        headers = {"Authorization": f"Bearer {token}"} if token else None
        return httpx.post(f"{self.url}/register", json=payload | fields, headers=headers, timeout=LIMIT_S, verify=False)

    @contextmanager
    def stranger(self, role: str, model: Path) -> Iterator[Path]:
        """An engine of another deployment that was given this one's router; its log."""
        token_file, log = self.cli.folder / "another-token", self.cli.folder / "stranger.log"
        token_file.write_text("another token")
        router = ["--router", f"127.0.0.1:{self.port}"]
        command = [sys.executable, "-m", "engine", "--model", str(model), "--splitwise-role", role, "--port", "0"]
        process = _start(command + router, self.cli.environment | {"PDCTL_TOKEN_FILE": str(token_file)}, log)
        try:
            yield log
        finally:
            process.kill()
            process.wait(10)

    def log(self, name: str) -> str:
        return (self.cli.folder / f"{name}.log").read_text()


@contextmanager
def deployment(cli: Cli) -> Iterator[Deployment]:
    """Run the deployment; at its end every process has to end as it should when it is told to."""
    token_file = cli.folder / "token"
    token_file.write_text("the deployment's token")
    environment = cli.environment | {"PDCTL_TOKEN_FILE": str(token_file)}
    ports = _free_ports(9)
    port = ports.pop()
    router = _start(_router_command(port), environment, cli.folder / "router.log")
    running = Deployment(cli, port, token_file.read_text(), router)
    try:
        _start_engines(running, ports, environment)
        yield running
        for process in running.processes:
            process.terminate()
        assert [process.wait(LIMIT_S) for process in running.processes] == [0] * 5
    finally:
        for process in running.processes:
            process.kill()
            process.wait(10)


def _start_engines(running: Deployment, ports: list[int], environment: dict[str, str]) -> None:
    until(running.answers, "the router to answer")
    for index, role in enumerate(("prefill", "decode", "prefill", "decode")):
        api, pd_comm = ports.pop(), ports.pop()
        command = _engine_command(role, api, pd_comm, running.port)
        log = running.cli.folder / f"{role}-{index // 2}.log"
        engine = Engine(role, api, command, environment, log, _start(command, environment, log))
        running.engines.append(engine)
    for engine in running.engines:
        running.wait_for(engine, "ready")


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=LIMIT_S, verify=False)  # loading certificates would take longer than the rest


def metrics(url: str) -> dict[str, float]:
    """The figures of a process, by their names with their labels."""
    text = get(f"{url}/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again at something that no event tells of."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT_S:g} s for: {what}"
        time.sleep(0.05)


def _router_command(port: int) -> list[str]:
    options = ["--splitwise", "--health-interval", "1", "--health-timeout", "2", "--health-failures", "2"]
    return [sys.executable, "-m", "pdctl.router", "--port", str(port), *options]


def _engine_command(role: str, port: int, pd_comm_port: int, router: int) -> list[str]:
    """Prefill has no prefix cache: it always has something to compute."""
    own = ["--no-prefix-caching"] if role == "prefill" else ["--pd-comm-port", str(pd_comm_port)]
    pool = ["--num-gpu-blocks-override", str(BLOCKS), "--max-model-len", "320", "--max-num-seqs", "32"]
    options = ["--port", str(port), "--router", f"127.0.0.1:{router}", "--dtype", "float32", "--threads", "1"]
    return [sys.executable, "-m", "engine", "--model", MODEL, "--splitwise-role", role, *options, *pool, *own]


def _start(command: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stderr=file)


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to outgoing connections: an engine that is down gets its port again."""
    ports: list[int] = []
    for port in random.sample(range(20000, 32000), 500):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError(f"no {count} free ports below 32000")
