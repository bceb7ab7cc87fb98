"""Real vLLM on the CPU, started by examples/vllm-cpu.yaml: prefill and decode, KV by NIXL. Run by `make test-vllm`."""

import os
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.e2e.e2e_harness import Cli
from tests.vllm.vllm_deployment import LIMIT_S, QUESTION, START_S, load_of, process_of, until, vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with vllm(tmp_path_factory.mktemp("vllm")) as cli:
        yield cli


@pytest.fixture
def client(cli: Cli) -> OpenAI:
    return OpenAI(base_url=f"{cli.status()['endpoint']}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)


def fallbacks(cli: Cli) -> list[str]:
    """What the router counted of requests for several choices."""
    page = httpx.get(f"{cli.status()['endpoint']}/metrics").text
    return [line.rsplit(" ", 1)[1] for line in page.splitlines() if 'fallbacks_total{reason="several_choices"}' in line]


def prompt(seed: str) -> str:
    """Several KV blocks that no earlier test has brought."""
    return " ".join(f"{seed} {number}" for number in range(200))


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


def test_two_choices_are_a_fallback_and_no_secret(cli: Cli, client: OpenAI):
    """This is the only test after which decode has computed a prompt, and so the deployment a warning."""
    before = cli.status()
    assert (before["state"], [process["warning"] for process in before["processes"]]) == ("ready", [None] * 3)
    assert fallbacks(cli) == []
    answer = client.completions.create(model="smollm2", prompt=prompt("two"), n=2, max_tokens=4, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    until(lambda: fallbacks(cli) == ["1"])
    until(lambda: "(several_choices)" in str(process_of(cli, "decode-0")["warning"]))


def test_a_client_that_leaves_ends_its_request_at_both_engines(cli: Cli, client: OpenAI):
    stream = client.completions.create(model="smollm2", prompt=prompt("left"), max_tokens=1000, stream=True)
    next(iter(stream))
    assert load_of(cli, "decode-0")["running"] == 1
    stream.close()
    until(lambda: [load_of(cli, name)["running"] for name in ("prefill-0", "decode-0")] == [0, 0])
    until(lambda: load_of(cli, "prefill-0")["kv_usage"] == 0)


def test_a_killed_prefill_engine_is_started_again_and_used(cli: Cli, client: OpenAI):
    before = process_of(cli, "prefill-0")
    tree = psutil.Process(before["pid"]).children(recursive=True)
    os.kill(before["pid"], signal.SIGKILL)
    reason = "prefill-0 was killed by SIGKILL: it is being restarted (restart 1)"
    until(lambda: cli.status()["reason"] == reason)
    psutil.wait_procs(tree, timeout=LIMIT_S)
    assert not any(process.is_running() and process.status() != "zombie" for process in tree)
    url = f"{cli.status()['endpoint']}/v1/completions"
    response = httpx.post(url, json={"model": "smollm2", "prompt": "Hello"})
    assert response.status_code in (502, 503)  # found out by this request, or by a health check before it
    until(lambda: cli.status()["state"] == "ready", START_S)
    after = process_of(cli, "prefill-0")
    assert (after["restarts"], after["pid"] != before["pid"]) == (1, True)
    moved = load_of(cli, "decode-0")["transferred_tokens"]
    client.completions.create(model="smollm2", prompt=prompt("again"), max_tokens=4)
    assert load_of(cli, "decode-0")["transferred_tokens"] > moved
    assert cli.status()["state"] == "ready"
