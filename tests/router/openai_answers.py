"""What engines answer to OpenAI requests of every kind, to be compared with what passes a router."""

from typing import Any

ASK = {"model": "m", "messages": [{"role": "user", "content": 'Wie heißt die Hauptstadt? \u2603 "\\'}]}
HEAD = {"id": "c-1", "created": 1, "model": "m", "system_fingerprint": "f"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
LOGPROB = {"token": "Pa", "logprob": -0.25, "bytes": [80, 97], "top_logprobs": [{"token": "Lo", "logprob": -3.5}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "K\u00f6ln"}'}}
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [1, 2], "remote_engine_id": "e", "remote_port": 5600}


def chat(message: dict[str, Any], finish: str = "stop", **more: object) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish} | more
    return HEAD | {"object": "chat.completion", "choices": [choice], "usage": USAGE}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: object) -> dict[str, Any]:
    choice = {"index": more.pop("index", 0), "delta": delta, "finish_reason": finish} | more
    return HEAD | {"object": "chat.completion.chunk", "choices": [choice]}


def text(piece: str, finish: str | None = None) -> dict[str, Any]:
    return HEAD | {"object": "text_completion", "choices": [{"index": 0, "text": piece, "finish_reason": finish}]}


def arguments(piece: str) -> dict[str, Any]:
    return chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})


# What is asked, and what the engine says: an answer, or the chunks of a stream.
CHATS: dict[str, tuple[dict[str, Any], dict[str, Any] | list[dict[str, Any]]]] = {
    "text": ({}, chat({"content": "K\u00f6ln \u2603 \U0001f600"})),
    "length": ({"max_completion_tokens": 1}, chat({"content": "K"}, "length")),
    "tools": ({"tools": [TOOL], "tool_choice": "auto"}, chat({"content": None, "tool_calls": [CALL]}, "tool_calls")),
    "logprobs": (
        {"logprobs": True, "top_logprobs": 1},
        chat({"content": "Pa"}, logprobs={"content": [LOGPROB], "refusal": None}),
    ),
    "reasoning": ({"reasoning_effort": "low"}, chat({"content": "yes", "reasoning_content": "hm"})),
    "n": ({"n": 2}, HEAD | {"object": "chat.completion", "choices": [
        {"index": i, "message": {"role": "assistant", "content": str(i)}, "finish_reason": "stop"} for i in range(2)
    ]}),
    "stream": (
        {"stream": True},
        [chunk({"role": "assistant", "content": ""}), chunk({"content": "K\u00f6ln \u2603"}), chunk({}, "stop")],
    ),
    "stream, tools": (
        {"stream": True, "tools": [TOOL], "parallel_tool_calls": True},
        [
            chunk({"role": "assistant", "tool_calls": [{"index": 0} | CALL | {"function": {"name": "weather"}}]}),
            *(arguments(piece) for piece in ('{"city":', ' "K', "\u00f6ln", '"}')),
            chunk({"tool_calls": [{"index": 1} | CALL | {"id": "call-2"}]}),
            chunk({}, "tool_calls"),
        ],
    ),
    "stream, logprobs": (
        {"stream": True, "logprobs": True, "top_logprobs": 1},
        [chunk({"content": "Pa"}, logprobs={"content": [LOGPROB], "refusal": None}), chunk({}, "stop")],
    ),
    "stream, usage": (
        {"stream": True, "stream_options": {"include_usage": True}},
        [chunk({"content": "K"}) | {"usage": None}, chunk({}) | {"choices": [], "usage": USAGE}],
    ),
    "stream, n": (
        {"stream": True, "n": 2},
        [chunk({"content": "a"}, index=1), chunk({"content": "b"}), chunk({}, "stop"), chunk({}, "stop", index=1)],
    ),
}  # fmt: skip
COMPLETIONS: dict[str, tuple[dict[str, Any], dict[str, Any] | list[dict[str, Any]]]] = {
    "text": ({"prompt": "x", "echo": False}, text("y", "stop") | {"usage": USAGE}),
    "tokens": ({"prompt": [1, 2, 3], "logprobs": 1}, text("y", "stop")),
    "stream": ({"prompt": "x", "stream": True, "suffix": "z"}, [text("y"), text("\u2603", "stop")]),
}
