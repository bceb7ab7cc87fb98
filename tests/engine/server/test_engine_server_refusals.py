"""What the API refuses, and how it says so."""

import pytest
from server_client import CHAT, HI, TEXT, ask

from engine.server.state import Backend

REFUSED = [
    (TEXT, {"prompt": "x", "max_tokens": "5"}, "max_tokens", "invalid_value"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens", "invalid_value"),
    (TEXT, {"prompt": "x", "n": 9}, "n", "invalid_value"),
    (TEXT, {"prompt": "x", "temperature": -1}, "temperature", "invalid_value"),
    (TEXT, {"prompt": "x", "top_p": 0}, "top_p", "invalid_value"),
    (TEXT, {"prompt": "x", "stop": ""}, "stop", "invalid_value"),
    (TEXT, {"prompt": "x", "stop": ["a", 1]}, "stop[1]", "invalid_value"),
    (TEXT, {"prompt": "x", "logprobs": 0}, "logprobs", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "echo": True}, "echo", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "suffix": "y"}, "suffix", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "best_of": 2}, "best_of", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "min_tokens": 2}, "min_tokens", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    (TEXT, {"prompt": "x", "logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    (TEXT, {"prompt": ["a", "b"]}, "prompt", "several_prompts"),
    (TEXT, {"prompt": [1, 999]}, "prompt", None),
    (TEXT, {"prompt": [True]}, "prompt", None),
    (TEXT, {"prompt": []}, None, None),
    (TEXT, {"prompt": ""}, None, None),
    (TEXT, {"prompt": 5}, "prompt", "invalid_value"),
    (TEXT, {}, "prompt", "missing_required_parameter"),
    (CHAT, {}, "messages", "missing_required_parameter"),
    (CHAT, {"messages": []}, "messages", "invalid_value"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", None),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", None),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", None),
    (CHAT, {"messages": [{"role": "user", "content": "template error"}]}, None, None),
    (CHAT, {"messages": HI, "logprobs": True}, "logprobs", "unsupported_parameter"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    (CHAT, {"messages": HI, "disaggregate_info": {}}, "disaggregate_info", "invalid_value"),
    (
        CHAT,
        {"messages": HI, "disaggregate_info": {"prefill_ip": "127.0.0.1", "decode_ip": "127.0.0.1"}},
        "disaggregate_info",
        None,
    ),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(client, core, path, body, param, code):
    status, answer = await ask(client, path, **body)
    assert status == 400
    error = answer["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"]
    assert param is None or param.split("[")[0] in error["message"] or "disaggregat" in error["message"]
    assert core.requests == []


@pytest.mark.parametrize(
    "off",
    [
        {"logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "echo": False},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": None},
        {"user": "me", "metadata": {"a": 1}, "store": False, "an_unknown_field": [1]},
    ],
)
async def test_fields_that_change_nothing_are_tolerated(client, off):
    status, _ = await ask(client, TEXT, prompt="x", **off)
    assert status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}'])
async def test_a_body_that_is_no_request_is_refused(client, body):
    async with client.post(TEXT, data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_a_body_over_the_limit_is_refused(client):
    async with client.post(TEXT, data=b'{"prompt": "' + b"x" * (9 << 20) + b'"}') as response:
        assert response.status == 413
        assert "error" in await response.json()


async def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(client):
    status, body = await ask(client, TEXT, prompt="x" * 128)
    assert status == 400
    assert body["error"]["code"] == "context_length_exceeded"
    assert "128" in body["error"]["message"]
    status, _ = await ask(client, TEXT, prompt="x" * 127)
    assert status == 200


async def test_a_long_prompt_is_counted_too(client):
    status, body = await ask(client, CHAT, messages=[{"role": "user", "content": "x" * 50_000}])
    assert status == 400
    assert str(50_000 + len("<user>")) in body["error"]["message"]


async def test_a_token_without_an_embedding_is_refused(client, state, core, tokenizer):
    state.ready(Backend(core, tokenizer, 128, vocab_size=10))
    status, body = await ask(client, TEXT, prompt="abc")
    assert status == 400
    assert "0..9 " in body["error"]["message"]
    assert core.requests == []


async def test_another_model_is_not_found(client):
    status, body = await ask(client, CHAT, messages=HI, model="gpt-4")
    assert status == 404
    assert body["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", CHAT, 405), ("GET", "/nowhere", 404)])
async def test_unknown_paths_get_error_objects_too(client, method, path, status):
    async with client.request(method, path) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]
