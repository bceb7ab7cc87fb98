"""SIGKILL of the launcher, the agent or both: nothing is left, or what is left is known and can be stopped."""

import json
import signal
import socket
import subprocess
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.e2e.e2e_harness import Cli, Topology, serve, until, wait_for_line
from tests.e2e.wrapped_engine import FOREVER, wrapped_engine

BODY = {"prompt": "a", "max_tokens": 2}


def ready_in_foreground(cli: Cli, topology: dict[str, object]) -> "subprocess.Popen[str]":
    up = cli.spawn("up", cli.write(topology))
    wait_for_line(up, "ready at")
    cli.note_memory()
    return up


def test_launcher_killed_while_serving(cli: Cli, pair: Topology) -> None:
    up = ready_in_foreground(cli, pair())
    up.kill()
    up.communicate(timeout=30)
    status = cli.status()
    assert status["state"] == "ready"
    assert httpx.post(f"{status['endpoint']}/v1/completions", json=BODY, timeout=30).status_code == 200
    assert cli("down").returncode == 0
    cli.check_gone()


def test_launcher_killed_while_starting(cli: Cli, pair: Topology) -> None:
    """Decode stops short in its first step, so the start is under way for as long as the test wants."""
    engine = wrapped_engine(cli.folder, "decode", f"print('held by the test', flush=True); {FOREVER}")
    up = cli.spawn("up", cli.write(pair(engine=engine)))
    wait_for_line(up, "decode-0  | held by the test")
    up.kill()
    up.communicate(timeout=30)
    status = cli.status()
    assert status["state"] == "degraded"
    assert "the pdctl that was starting it has ended" in status["reason"]
    living = {process.pid for process in cli.processes()}
    assert {process["pid"] for process in status["processes"]} <= living
    cli.note_memory()
    assert cli("down").returncode == 0
    cli.check_gone()


@pytest.mark.parametrize("also_guardian", [False, True])
def test_agent_killed(cli: Cli, pair: Topology, also_guardian: bool) -> None:
    """What it ran is ended by its guardian or, where that is killed with it, by the kernel."""
    with serve(cli, pair()):
        agent = _agent(cli)
        for victim in [agent.parent(), agent] if also_guardian else [agent]:
            victim.kill()
        until(lambda: cli.processes() == [], "the end of all processes")
        cli.check_gone()
        assert cli.status()["state"] == "down"


def _agent(cli: Cli) -> psutil.Process:
    [description] = (cli.folder / "state").glob("*/hosts/here/agent.json")
    agent = psutil.Process(json.loads(description.read_text())["pid"])
    commands = [" ".join(process.cmdline()) for process in (agent, agent.parent())]
    assert all("pdctl.agent" in command for command in commands), commands
    return agent


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
    cli.note_memory(decodes=2)
    endpoints = {str(cli.status("--name", name)["endpoint"]) for name in ("one", "two")}
    assert len(endpoints) == 2
    for endpoint in endpoints:
        assert httpx.post(f"{endpoint}/v1/completions", json=BODY, timeout=30).status_code == 200
    assert cli("down", "--name", "one").returncode == 0
    assert cli.status("--name", "two")["state"] == "ready"
    assert cli("down", "--name", "two").returncode == 0


def test_interrupt_drains_and_stops(cli: Cli, pair: Topology) -> None:
    up = ready_in_foreground(cli, pair())
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
    cli.check_gone()
