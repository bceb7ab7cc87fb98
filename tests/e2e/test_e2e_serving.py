"""The embedded default's shape, one prefill and one decode engine with SmolLM2, used as a client would."""

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.e2e_harness import Cli, Serving, serve

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


@pytest.fixture(scope="module")
def chat(module_cli: Cli) -> Iterator[Serving]:
    """SmolLM2 with one prefill and one decode engine."""
    with serve(module_cli, {"name": "chat", "prefill": 1, "decode": 1}) as serving:
        yield serving


def test_answers_with_paris(chat: Serving) -> None:
    reply = httpx.post(f"{chat.url}/v1/chat/completions", json=QUESTION, timeout=60)
    assert reply.status_code == 200
    answer = reply.json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_openai_client_streams(chat: Serving) -> None:
    client = openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_choices_of_one_prompt_differ_and_repeat_by_seed(chat: Serving) -> None:
    body = {"prompt": "Once upon a time", "n": 3, "max_tokens": 12, "temperature": 1.2, "seed": 7}
    first, second = (httpx.post(f"{chat.url}/v1/completions", json=body, timeout=60).json() for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [choice["text"] for choice in second["choices"]]


def test_stop_string_ends_the_answer(chat: Serving) -> None:
    body = {"prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 32, "temperature": 0, "stop": [" 9"]}
    choice = httpx.post(f"{chat.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "8" in choice["text"]
    assert "9" not in choice["text"]


def test_decode_computes_no_prompt_token(chat: Serving) -> None:
    """The proof that the split happens: decode's prompt tokens came by transfer, none were computed there."""
    name = "pdctl:prompt_tokens_by_source_total"
    before = chat.metric("decode", f'{name}{{source="kv_transfer"}}')
    body = {"prompt": "The river runs past the old mill " * 20, "max_tokens": 4, "temperature": 0}
    usage = httpx.post(f"{chat.url}/v1/completions", json=body, timeout=60).json()["usage"]
    assert chat.metric("decode", f'{name}{{source="kv_transfer"}}') == before + usage["prompt_tokens"]
    assert chat.metric("decode", f'{name}{{source="local_compute"}}') == 0
    assert chat.metric("decode", 'pdctl:kv_transfer_bytes_total{direction="received"') > 0


def test_too_long_a_prompt_is_a_clear_400(chat: Serving) -> None:
    reply = httpx.post(f"{chat.url}/v1/completions", json={"prompt": "word " * 9000, "max_tokens": 4}, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_status_tells_state_processes_and_load(chat: Serving) -> None:
    status = chat.cli.status("--name", "chat")
    assert (status["name"], status["state"], status["endpoint"]) == ("chat", "ready", chat.url)
    processes = {process["name"]: process for process in status["processes"]}
    assert set(processes) == {"router", "prefill-0", "decode-0"}
    for process in processes.values():
        assert process["state"] == "ready"
        assert process["pid"] > 0
        assert process["port"] > 0
        assert process["restarts"] == 0
        assert process["uptime_s"] > 0
        assert process["memory_bytes"] > 0
    assert processes["decode-0"]["load"]["transferred_tokens"] > 0


def test_second_up_changes_nothing(chat: Serving) -> None:
    again = chat.cli("up", "-d", chat.topology)
    assert again.returncode == 0
    assert "already" in again.stdout + again.stderr
    pids = [process["pid"] for process in chat.cli.status("--name", "chat")["processes"]]
    assert pids == [process["pid"] for process in chat.status["processes"]]


def test_logs_of_one_process(chat: Serving) -> None:
    shown = chat.cli("logs", "--name", "chat", "prefill-0", "--tail", "50")
    assert shown.returncode == 0
    assert "prefill-0" in shown.stdout
    assert "decode-0 " not in shown.stdout


def test_bench_against_the_deployment(chat: Serving) -> None:
    result = chat.cli.folder / "bench.json"
    options = ("--name", "chat", "--qps", "4", "--requests", "6", "--input-tokens", "20", "--output-tokens", "4")
    bench = chat.cli("bench", *options, "--json", result)
    assert bench.returncode == 0, bench.stdout + bench.stderr
    figures = json.loads(result.read_text())
    assert figures["completed"] == 6
    assert figures["total_output_tokens"] == 24
    assert figures["median_ttft_ms"] > 0
