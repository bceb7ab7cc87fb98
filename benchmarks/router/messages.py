"""What client and mock engines say to each other, as bytes built once."""

import json

CHUNKS = 32  # of a streamed answer, before [DONE]
PACE_S = 0.020  # between the chunks of a paced stream
PACED = b"paced-chunks="  # in the prompt, followed by how many: the decode paces its stream
STREAM_END = b"\r\n0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"

_SYSTEM = "You are a careful assistant. Answer in short sentences, and say so when you do not know."
_QUESTION = "How does a prefill engine hand the KV blocks of a prompt to a decode engine, and who frees them?"
_USAGE = {"prompt_tokens": 48, "completion_tokens": CHUNKS, "total_tokens": 48 + CHUNKS}

# What a vLLM 0.32 prefill with NixlConnector answers.
KV_TRANSFER_PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3, 4]],
    "remote_engine_id": "6f0e4f9c-5c3f-4f1c-9d5b-0a8c6d0f8a11",
    "remote_request_id": "chatcmpl-8d1c1b9e4f7a4c52b0a6f3d2e1c0b9a8-0-5e6f7a8b",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 48,
    "remote_blocks_expiry_time": 1700000030.25,
    "transfer_mode": "pull",
    "remote_prefill_cached_tokens": 0,
}


def request(path: str, body: object) -> bytes:
    """A POST of JSON."""
    data = compact(body)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def chat_request(*, streaming: bool, paced_chunks: int = 0) -> bytes:
    """The request that every client sends."""
    question = f"{_QUESTION} {PACED.decode()}{paced_chunks}" if paced_chunks else _QUESTION
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
    body = {"model": "m", "messages": messages, "max_tokens": paced_chunks or CHUNKS, "temperature": 0.0}
    return request("/v1/chat/completions", body | {"stream": True} if streaming else body)


def get_request(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


def json_answer(body: object, status: bytes = b"200 OK") -> bytes:
    """A whole answer of JSON."""
    data = compact(body)
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data)


def completion(text: str, **more: object) -> dict[str, object]:
    """A chat completion that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-8d1c1b9e4f7a4c52b0a6f3d2e1c0b9a8",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [choice],
        "usage": _USAGE,
    } | more


def event(content: str) -> bytes:
    """One chunk of a streamed chat completion, as one HTTP chunk."""
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None}
    body = {
        "id": "chatcmpl-8d1c1b9e4f7a4c52b0a6f3d2e1c0b9a8",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [choice],
    }
    return http_chunk(b"data: %b\n\n" % compact(body))


def paced_event_template() -> bytes:
    """A chunk that says its number and when it was sent, to be filled in with `%`; always of the same size."""
    text = event("N" * 6 + "@" + "T" * 20).decode()
    return text.replace("N" * 6, "%06d").replace("T" * 20, "%020d").encode()


def stream_answer(chunks: int) -> bytes:
    """A whole streamed answer: each chunk is its own HTTP chunk, as engines send them."""
    events = b"".join(event(f" token{number}") for number in range(chunks))
    return STREAM_HEAD + events + http_chunk(DONE) + b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def compact(body: object) -> bytes:
    """JSON as the engines and the Rust routers write it: without spaces."""
    return json.dumps(body, separators=(",", ":")).encode()
