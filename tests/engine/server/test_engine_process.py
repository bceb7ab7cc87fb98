"""The engine as a process, with a tiny random model."""

import itertools
import re
import signal
import socket

import httpx
import pytest
from engine_mains import BROKEN, DYING, WAITING_FOR_A_SIGNAL
from engine_process import LENGTH, EngineProcess, legs

from tests.engine.tiny import make_tiny_model

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"


def test_start_is_told_step_by_step(mixed):
    kinds = [event["event"] for event in mixed.events]
    assert kinds[0] == "listening"
    assert kinds[-1] == "ready"
    steps = [event for event in mixed.events if event["event"] == "progress"]
    assert {event["step"] for event in steps} == {"loading weights"}
    assert [event["done"] for event in steps] == sorted(event["done"] for event in steps)
    assert mixed.ports.keys() == {"api", "metrics"}


def test_mixed_answers(mixed):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = mixed.post(CHAT, body).json()
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert mixed.post(CHAT, body).json()["choices"] == answer["choices"]


def test_a_prompt_sent_again_is_found_in_the_cache(mixed):
    body = {"prompt": list(range(100, 150)), "max_tokens": 1}
    mixed.post(TEXT, body)
    assert mixed.post(TEXT, body).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 48}


def test_a_prompt_that_does_not_fit_is_refused(mixed):
    answer = mixed.post(TEXT, {"prompt": [100] * LENGTH})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_pair_answers_as_mixed_does_and_moves_the_kv(mixed, pair):
    prefill, decode = pair
    body = {"prompt": list(range(100, 200)), "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    expected = mixed.post(TEXT, body).json()["choices"]
    first, second = legs(prefill, decode, "pair-1", **body)
    assert first.json()["object"] == "prefill"
    assert second.json()["choices"] == expected
    metrics = decode.metrics()
    assert metrics['pdctl:prompt_tokens_by_source_total{source="kv_transfer"}'] == 100
    assert metrics['pdctl:prompt_tokens_by_source_total{source="local_compute"}'] == 0
    assert decode.moved("received") == prefill.moved("sent") > 0


def test_a_pair_samples_as_mixed_does_without_a_seed(mixed, pair):
    body = {"prompt": "Tell me", "max_tokens": 12, "temperature": 1.0, "n": 3, "ignore_eos": True}
    expected = mixed.post(TEXT, {**body, "request_id": "same-id"}).json()["choices"]
    _, answer = legs(*pair, "same-id", **body)
    assert answer.json()["choices"] == expected


def test_a_pair_streams(pair):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True, "ignore_eos": True}
    first, second = legs(*pair, "streamed", CHAT, **body)
    assert first.status_code == 200
    assert second.headers["content-type"].startswith("text/event-stream")
    assert second.text.endswith("data: [DONE]\n\n")


def test_a_pair_refuses_what_does_not_fit_on_both_legs(pair):
    for answer in legs(*pair, "too-long", prompt=[100] * LENGTH):
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("index", [0, 1])
def test_a_request_that_did_not_pass_the_router_is_refused(pair, index):
    answer = pair[index].post(TEXT, {"prompt": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "not_through_router"
    assert "router" in answer.json()["error"]["message"]


def test_a_decode_engine_that_is_not_there_is_named(pair):
    prefill, _ = pair
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    body = {
        "prompt": "x",
        "request_id": "nobody",
        "disaggregate_info": {
            "prefill_ip": "127.0.0.1",
            "decode_ip": "127.0.0.1",
            "decode_connector_port": port,
        },
    }
    answer = prefill.post(TEXT, body)
    assert answer.status_code == 502
    assert str(port) in answer.json()["error"]["message"]


def test_a_prefill_engine_that_dies_fails_decodes_leg_with_its_name(start, pair, token_file):
    decode = pair[1]
    flags = ("--splitwise-role", "prefill", "--max-num-batched-tokens", "64")
    with start(*flags, env=token_file, main=("-c", DYING)) as prefill:
        prefill.ready()
        first, second = legs(prefill, decode, "dying", prompt=[100] * 80)
        assert prefill.ended()[0] == -signal.SIGKILL
    assert first is None
    assert second.status_code == 502
    assert f"127.0.0.1:{prefill.ports['api']}" in second.json()["error"]["message"]
    metrics = decode.metrics()
    assert metrics["pdctl:kv_transfer_failed_total"] == 1
    assert metrics["pdctl:kv_cache_usage_perc"] == 0
    assert httpx.get(f"{decode.url}/health").status_code == 200


@pytest.fixture
def answering(start):
    """An engine in the middle of an answer, which goes no further before a signal has come, and what comes of it."""
    with start(main=("-c", WAITING_FOR_A_SIGNAL)) as engine:
        engine.ready()
        body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", engine.url + TEXT, json=body, timeout=30) as response:
            pieces = response.iter_bytes()
            yield engine, itertools.chain([next(pieces)], pieces)


def test_sigterm_lets_the_requests_being_served_end(answering):
    engine, pieces = answering
    engine.signal(signal.SIGTERM)
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    status, log = engine.ended()
    assert status == 0, log
    assert "SIGTERM: finishing 1 request" in log
    assert "Traceback" not in log


def test_a_second_signal_ends_it_at_once(answering):
    engine, _ = answering
    engine.signal(signal.SIGSTOP)  # so that both signals are there before it does anything
    engine.signal(signal.SIGTERM)
    engine.signal(signal.SIGINT)
    engine.signal(signal.SIGCONT)
    assert engine.ended()[0] in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_a_signal_while_loading_ends_it_at_once(start):
    with start() as engine:
        engine.until("listening")
        engine.signal(signal.SIGTERM)
        assert engine.ended()[0] == 128 + signal.SIGTERM


def test_a_failing_core_tells_its_clients_and_ends_the_process(start):
    with start(main=("-c", BROKEN)) as engine:
        engine.ready()
        answer = engine.post(TEXT, {"prompt": "x", "max_tokens": 200, "ignore_eos": True})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_failed"
        status, log = engine.ended()
    assert status == 1
    assert "the runner is broken" in log
    assert "Traceback" in log


def failure(*flags, **options):
    """Start an engine that cannot start; return its one line."""
    with EngineProcess(*flags, **options) as engine:
        status, log = engine.ended()
    assert status == 1
    assert log.count("\n") == 1, log
    return log


@pytest.mark.parametrize(
    ("flag", "role"), [("--port", "mixed"), ("--metrics-port", "mixed"), ("--pd-comm-port", "decode")]
)
def test_a_taken_port_is_named(model, flag, role):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--port": "0", "--metrics-port": "0", flag: port}
        flags = [word for pair in ports.items() for word in pair]
        with EngineProcess("--model", str(model), "--splitwise-role", role, *flags) as engine:
            status, log = engine.ended()
    assert status == 1
    assert f"{flag} {port}: the port is taken" in log.splitlines()[-1]
    assert "Traceback" not in log


def test_a_missing_model_is_named(tmp_path):
    assert "nowhere" in failure("--model", str(tmp_path / "nowhere"), "--port", "0")


def test_a_truncated_model_is_refused(tmp_path):
    folder = make_tiny_model(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert re.search("truncated|damaged", failure("--model", str(folder), "--port", "0"))


def test_a_length_beyond_the_models_is_refused(model):
    assert "2048" in failure("--model", str(model), "--max-model-len", "4096")


def test_a_token_file_that_is_not_there_is_named(model, tmp_path):
    env = {"PDCTL_TOKEN_FILE": str(tmp_path / "none")}
    assert "PDCTL_TOKEN_FILE" in failure("--model", str(model), "--port", "0", env=env)
