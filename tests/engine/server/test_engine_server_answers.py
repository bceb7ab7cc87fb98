"""What the API answers, over real HTTP, in front of a core that says what the test tells it to."""

import pytest
from server_client import CHAT, HI, TEXT, ask, chunks, events
from server_fakes import EOS


async def test_chat_answers_whole(client, core):
    status, body = await ask(client, CHAT, messages=HI, model="chat")
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "chat"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello, world!", "refusal": None}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    prompt = len("<user>hi")
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len("Hello, world!") + 1,
        "total_tokens": prompt + len("Hello, world!") + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert core.aborted == []


async def test_completion_answers_whole(client):
    status, body = await ask(client, TEXT, prompt="Say:", max_tokens=5)
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello", "finish_reason": "length", "logprobs": None}]
    assert body["usage"]["completion_tokens"] == 5


async def test_completion_generates_16_tokens_by_default(client, core):
    core.answer = "x" * 50
    _, body = await ask(client, TEXT, prompt="Say:")
    assert body["choices"][0]["text"] == "x" * 16


async def test_chat_may_use_all_room_by_default(client, core):
    await ask(client, CHAT, messages=HI)
    assert core.requests[0].sampling.max_tokens == 128 - len("<user>hi")


async def test_max_completion_tokens_wins_over_max_tokens(client, core):
    await ask(client, CHAT, messages=HI, max_tokens=3, max_completion_tokens=4)
    assert core.requests[0].sampling.max_tokens == 4


async def test_max_tokens_beyond_the_models_length_ends_there(client, core):
    status, _ = await ask(client, CHAT, messages=HI, max_tokens=10_000)
    assert status == 200
    assert core.requests[0].sampling.max_tokens == 128 - len("<user>hi")


async def test_usage_tells_how_much_of_the_prompt_was_cached(client, core):
    core.cached_tokens = 4
    _, body = await ask(client, CHAT, messages=HI, n=2)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_stream_of_a_chat(client):
    stream = chunks(await events(client, CHAT, messages=HI))
    assert {chunk["object"] for chunk in stream} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in stream}) == 1
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream) == "Hello, world!"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in stream]
    assert reasons == [None] * (len(stream) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in stream)


async def test_stream_of_a_completion(client):
    stream = chunks(await events(client, TEXT, prompt="Say:"))
    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == "Hello, world!"
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"


async def test_stream_ends_with_usage_where_asked(client):
    stream = chunks(await events(client, CHAT, messages=HI, stream_options={"include_usage": True}))
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == len("Hello, world!") + 1
    assert all(chunk["usage"] is None for chunk in stream[:-1])


async def test_stream_counts_as_it_goes_where_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = chunks(await events(client, CHAT, messages=HI, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] == len("Hello, world!") + 1


async def test_several_choices(client):
    _, body = await ask(client, CHAT, messages=HI, n=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"Hello, world!"}
    assert body["usage"]["completion_tokens"] == 3 * (len("Hello, world!") + 1)


async def test_stream_of_several_choices(client):
    stream = chunks(await events(client, CHAT, messages=HI, n=2))
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in stream if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hello, world!"
        assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", [", w", ["zzz", ", w"]])
async def test_stop_string_ends_the_answer_and_the_request(client, core, stop):
    core.pause_after = len("Hello, w") + 1  # the core would go on: only an abort ends it
    _, body = await ask(client, CHAT, messages=HI, stop=stop, request_id="r1")
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert core.aborted_requests == ["r1"]


async def test_stop_string_in_a_stream_is_never_shown_in_part(client, core):
    core.answer = "one STOP two"
    stream = chunks(await events(client, TEXT, prompt="x", stop="STOP"))
    pieces = [chunk["choices"][0]["text"] for chunk in stream]
    assert "".join(pieces) == "one "
    assert not any("S" in piece for piece in pieces)


async def test_a_character_of_several_tokens_comes_whole(client, core):
    core.answer = "€ and 🦊"
    stream = chunks(await events(client, TEXT, prompt="x"))
    pieces = [chunk["choices"][0]["text"] for chunk in stream]
    assert "".join(pieces) == core.answer
    assert all("\ufffd" not in piece for piece in pieces)


async def test_defaults_and_options_reach_the_core(client, core):
    await ask(client, TEXT, prompt="x")
    sampling = core.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (1.0, 1.0, 0, 1)
    assert sampling.stop_token_ids == {EOS}
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 42, "stop_token_ids": [10]}
    await ask(client, TEXT, prompt="x", **options, ignore_eos=True)
    sampling = core.requests[1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 7, 42)
    assert sampling.stop_token_ids == {10}


async def test_seed_comes_of_the_request_id_so_that_both_legs_agree(client, core):
    for request_id in ("a", "a", "b"):
        await ask(client, TEXT, prompt="x", request_id=request_id)
    first, again, other = (request.sampling.seed for request in core.requests)
    assert first == again != other


async def test_requests_without_id_or_seed_differ(client, core):
    for _ in range(2):
        await ask(client, TEXT, prompt="x")
    first, second = core.requests
    assert first.request_id != second.request_id
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
async def test_prompt_of_token_ids(client, core, prompt):
    await ask(client, TEXT, prompt=prompt)
    assert core.requests[0].prompt == [1, 2, 3]


async def test_prompt_in_a_list(client, core):
    await ask(client, TEXT, prompt=["abc"])
    assert len(core.requests[0].prompt) == 3


async def test_message_of_text_parts_and_developer_role(client, core, tokenizer):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await ask(client, CHAT, messages=[{"role": "developer", "content": "be"}, {"role": "user", "content": parts}])
    assert tokenizer.decode(core.requests[0].prompt) == "<system>be<user>a\nb"
