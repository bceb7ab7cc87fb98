"""SIGKILL of the launcher, the agent or both: nothing is left, or what is left is known and can be stopped."""

import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import psutil

from tests.e2e.conftest import Cli, serve

Topology = Callable[..., dict[str, object]]
BODY = {"prompt": "a", "max_tokens": 2}


def test_launcher_killed_while_serving(cli: Cli, pair: Topology) -> None:
    up = cli.spawn("up", cli.write(pair()))
    assert up.stdout is not None
    assert any("ready at" in line for line in up.stdout)
    up.kill()
    up.communicate(timeout=30)
    status = cli.status()
    assert status["state"] == "ready"
    assert httpx.post(f"{status['endpoint']}/v1/completions", json=BODY, timeout=30).status_code == 200
    assert cli("down").returncode == 0
    assert cli.processes() == []


def test_launcher_killed_while_starting(cli: Cli, pair: Topology) -> None:
    up = cli.spawn("up", cli.write(pair()))
    assert up.stdout is not None
    assert any("decode-0" in line for line in up.stdout)
    up.kill()
    up.communicate(timeout=30)
    assert cli.status()["state"] in ("degraded", "down")
    assert cli("down").returncode == 0
    assert cli.processes() == []


def test_agent_killed(cli: Cli, pair: Topology) -> None:
    with serve(cli, pair()) as serving:
        agents = _agents(cli)
        children = [psutil.Process(process["pid"]) for process in serving.status["processes"]]
        for agent in agents:
            agent.kill()
        _gone, alive = psutil.wait_procs([*agents, *children], timeout=15)
        assert alive == []
        assert cli.status()["state"] == "down"


def test_down_is_idempotent_and_logs_stay(cli: Cli, pair: Topology) -> None:
    with serve(cli, pair()):
        pass
    assert cli("down", "--name", "pair").returncode == 0
    logs = cli("logs", "--name", "pair", "decode-0")
    assert logs.returncode == 0
    assert logs.stdout


def test_two_deployments_started_at_the_same_moment(cli: Cli, pair: Topology) -> None:
    ups = [cli.spawn("up", "-d", cli.write(pair(name))) for name in ("one", "two")]
    for up in ups:
        stdout, stderr = up.communicate(timeout=240)
        assert up.returncode == 0, stdout + stderr
    endpoints = {str(cli.status("--name", name)["endpoint"]) for name in ("one", "two")}
    assert len(endpoints) == 2
    for endpoint in endpoints:
        assert httpx.post(f"{endpoint}/v1/completions", json=BODY, timeout=30).status_code == 200
    assert cli("down", "--name", "one").returncode == 0
    assert cli.status("--name", "two")["state"] == "ready"
    assert cli("down", "--name", "two").returncode == 0


def test_interrupt_drains_and_stops(cli: Cli, pair: Topology) -> None:
    up = cli.spawn("up", cli.write(pair()))
    assert up.stdout is not None
    assert any("ready at" in line for line in up.stdout)
    endpoint = str(cli.status()["endpoint"])
    host, port = endpoint.removeprefix("http://").split(":")
    body = '{"prompt":"a","max_tokens":300,"ignore_eos":true,"stream":true}'
    with ExitStack() as stack:
        client = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall((head + body).encode())
        received = client.recv(4096)
        up.send_signal(signal.SIGINT)
        while data := client.recv(65536):
            received += data
    assert b"[DONE]" in received  # the answer under way was finished
    up.communicate(timeout=60)
    assert up.returncode in (0, 130)
    assert cli.processes() == []


def _agents(cli: Cli) -> list[psutil.Process]:
    return [process for process in cli.processes() if "pdctl.agent" in " ".join(process.cmdline())]
