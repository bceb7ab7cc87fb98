"""Real vLLM on the CPU, started by examples/vllm-cpu.yaml: prefill and decode, KV by NIXL. Run by `make test-vllm`."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.e2e.e2e_harness import Cli, clean_cli

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vllm-cpu.yaml"
QUESTION = "What is the capital of Italy?"
LIMIT_S = 60.0

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def up(cli: Cli) -> None:
    started = cli("up", "-d", EXAMPLE, timeout=600)
    assert started.returncode == 0, started.stdout + started.stderr


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    os.environ["PORT"] = "0"
    with clean_cli(tmp_path_factory.mktemp("vllm")) as cli:
        up(cli)
        yield cli
        assert cli("down").returncode == 0
        cli.check_gone()


@pytest.fixture
def client(cli: Cli) -> OpenAI:
    return OpenAI(base_url=f"{cli.status()['endpoint']}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)


def load_of(cli: Cli, name: str) -> dict[str, float]:
    return {process["name"]: process["load"] for process in cli.status()["processes"]}[name]


def prompt(seed: str) -> str:
    """Several KV blocks that no earlier test has brought."""
    return " ".join(f"{seed} {number}" for number in range(200))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # an engine's figures are published by nobody


def test_a_chat_is_answered_right(client: OpenAI):
    answer = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], max_tokens=16, temperature=0
    )
    assert "Rome" in (answer.choices[0].message.content or "")


def test_the_router_knows_the_models_name(client: OpenAI):
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_a_stream_says_the_same(client: OpenAI):
    body = {"model": "smollm2", "prompt": "The capital of Italy is", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**body).choices[0].text
    pieces = [event.choices[0].text for event in client.completions.create(**body, stream=True) if event.choices]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


def test_prompts_are_computed_by_prefill_and_their_kv_is_moved(cli: Cli, client: OpenAI):
    before = load_of(cli, "decode-0")
    answer = client.completions.create(model="smollm2", prompt=prompt("moved"), max_tokens=4, temperature=0)
    assert answer.usage is not None
    after = load_of(cli, "decode-0")
    moved = after["transferred_tokens"] - before["transferred_tokens"]
    assert answer.usage.prompt_tokens - 1 <= moved <= answer.usage.prompt_tokens
    assert after["locally_computed_tokens"] == before["locally_computed_tokens"]
    assert after["transferred_bytes"] > before["transferred_bytes"]


def test_the_deployment_has_no_warning(cli: Cli):
    status = cli.status()
    assert (status["state"], [process["warning"] for process in status["processes"]]) == ("ready", [None] * 3)


def test_two_choices(client: OpenAI):
    answer = client.completions.create(model="smollm2", prompt=prompt("two"), n=2, max_tokens=4, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_two_choices_are_no_secret_fallback(cli: Cli):
    metrics = httpx.get(f"{cli.status()['endpoint']}/metrics").text
    assert 'pdctl_router_fallbacks_total{reason="several_choices"} 1' in metrics


def test_a_client_that_leaves_ends_its_request_at_both_engines(cli: Cli, client: OpenAI):
    stream = client.completions.create(model="smollm2", prompt=prompt("left"), max_tokens=1000, stream=True)
    next(iter(stream))
    assert load_of(cli, "decode-0")["running"] == 1
    stream.close()
    until(lambda: [load_of(cli, name)["running"] for name in ("prefill-0", "decode-0")] == [0, 0])
    until(lambda: load_of(cli, "prefill-0")["kv_usage"] == 0)


def test_a_killed_prefill_engine_is_started_again_and_used(cli: Cli, client: OpenAI):
    pid = {process["name"]: process["pid"] for process in cli.status()["processes"]}["prefill-0"]
    tree = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs(tree, timeout=LIMIT_S)
    assert not any(process.is_running() and process.status() != "zombie" for process in tree)
    status = cli.status()
    assert (status["state"], status["reason"]) == (
        "degraded",
        "prefill-0 was killed by SIGKILL: see `pdctl logs prefill-0`",
    )
    response = httpx.post(f"{status['endpoint']}/v1/completions", json={"model": "smollm2", "prompt": "Hello"})
    assert response.status_code in (502, 503)  # found out by this request, or by a health check before it
    again = cli("restart", "prefill-0", timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    before = load_of(cli, "decode-0")["transferred_tokens"]
    client.completions.create(model="smollm2", prompt=prompt("again"), max_tokens=4)
    assert load_of(cli, "decode-0")["transferred_tokens"] > before
    assert cli.status()["state"] == "ready"


def test_the_same_through_vllm_router(cli: Cli, tmp_path_factory: pytest.TempPathFactory):
    assert cli("down").returncode == 0
    cli.check_gone()
    os.environ["ROUTER"] = "vllm-router"
    try:
        up(cli)
    finally:
        del os.environ["ROUTER"]
    endpoint = cli.status()["endpoint"]
    body = {"model": "smollm2", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=LIMIT_S)
    assert "Rome" in json.dumps(answer.json())
    assert load_of(cli, "decode-0")["transferred_tokens"] > 0
