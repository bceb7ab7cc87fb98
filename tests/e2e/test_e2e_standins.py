"""`pdctl up` of SGLang and FastDeploy with their real command lines, which start stand-ins (tests/standins)."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from pdctl.deployment.store import Store
from tests.e2e.e2e_harness import LIMIT_S, Cli

STANDINS = Path(__file__).parents[1] / "standins"
CHAT = {"model": "M", "messages": [{"role": "user", "content": "What is a bridge?"}], "max_tokens": 8}

KEY = "sk-1"  # of engines that want one

SGLANG = {"engine": "sglang", "prefill": {"replicas": 2}, "decode": {"tp": 2, "dp": 2}}
FASTDEPLOY = {"engine": "fastdeploy", "prefill": {"tp": 2}, "decode": {"tp": 2}}
FASTDEPLOY_DP = {"engine": "fastdeploy-dp", "prefill": {"dp": 2}, "decode": {"dp": 2}}


@pytest.fixture(autouse=True)
def _engines_on_the_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    monkeypatch.setenv("PATH", f"{STANDINS / 'bin'}:{os.environ['PATH']}")


@contextmanager
def up(cli: Cli, topology: dict[str, object], servers: int) -> Iterator[dict[str, object]]:
    """``servers``: how many API servers the engines have together, each of which has to find everything right."""
    path = cli.write({"name": "other", "model": "M"} | topology)
    started = cli("up", "-d", path)
    assert started.returncode == 0, started.stdout + started.stderr
    status = cli.status()
    try:
        yield status
        assert violations(cli) == [[]] * servers
    finally:
        assert cli("down").returncode == 0


def violations(cli: Cli) -> list[list[str]]:
    """What each API server found wrong with flags, variables, bodies and their order."""
    plan = Store(cli.folder / "state").folder("other").read_plan()
    assert plan is not None
    heads = [engine for engine in plan.engines if engine.head is None]
    ports = [engine.ports[purpose] for engine in heads for purpose in engine.api_ports]
    return [httpx.get(f"http://127.0.0.1:{port}/standin/violations", timeout=LIMIT_S).json() for port in ports]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def ask(status: dict[str, object], **changes: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(
        f"{status['endpoint']}/v1/chat/completions", json=CHAT | changes, headers=headers, timeout=LIMIT_S
    )


@pytest.mark.parametrize(
    ("topology", "servers", "alone_servers"),
    [(SGLANG, 3, 1), (FASTDEPLOY, 2, 1), (FASTDEPLOY_DP, 4, 2)],
    ids=["sglang", "fastdeploy", "fastdeploy-dp"],
)
def test_engines_start_by_their_own_command_lines_and_serve(
    cli: Cli, topology: dict[str, object], servers: int, alone_servers: int
):
    with up(cli, topology, servers) as status:
        assert status["state"] == "ready"
        alone = text_of(ask(status))
        streamed = ask(status, stream=True)
        assert streamed.text.rstrip().endswith("data: [DONE]")
        assert [choice["index"] for choice in ask(status, n=2).json()["choices"]] == [0, 1]
    with up(cli, {"engine": topology["engine"], "mixed": topology["decode"]}, alone_servers) as status:
        assert text_of(ask(status)) == alone


def test_a_killed_engine_is_restarted_also_where_engines_want_an_api_key(cli: Cli):
    # Decode learns by two missed heartbeats that a prefill engine is not the one that it knew.
    slow, attentive = {"STANDIN_START_S": "1"}, {"SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "0.2"}
    keyed = {"args": {"api-key": KEY}}
    prefill, decode = keyed | {"replicas": 2, "env": slow}, keyed | {"env": attentive}
    with up(cli, {"engine": "sglang", "prefill": prefill, "decode": decode}, servers=3) as status:
        pids = {process["name"]: process["pid"] for process in status["processes"]}
        engine = psutil.Process(pids["prefill-0"])
        os.kill(engine.pid, signal.SIGKILL)
        psutil.wait_procs([engine], timeout=LIMIT_S)
        assert text_of(ask(status)), "prefill-1 still serves"
        again = cli("restart", "prefill-0")
        assert again.returncode == 0, again.stdout + again.stderr
        assert cli.status()["state"] == "ready"


def test_an_engine_that_has_too_little_memory_is_told_with_advice(cli: Cli):
    path = cli.write(
        {"name": "other", "model": "M"} | SGLANG | {"decode": {"env": {"STANDIN_START_FAULT": "out-of-memory"}}}
    )
    failed = cli("up", "-d", path)
    assert failed.returncode == 5, failed.stdout + failed.stderr
    assert "decode-0 exited with code" in failed.stderr
    assert "advice: " in failed.stderr
