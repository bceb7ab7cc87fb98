"""What OpenAI's own client makes of the answers."""

import openai
import pytest

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api(client):
    base_url = str(client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=10) as api:
        yield api


async def test_chat(api):
    answer = await api.chat.completions.create(model="chat", messages=HI)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chat_stream(api):
    options = {"include_usage": True}
    stream = await api.chat.completions.create(model="chat", messages=HI, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello, world!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == len(text) + 1


async def test_completion(api):
    answer = await api.completions.create(model="chat", prompt="x", max_tokens=5, n=2, stop=["zz"])
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.choices[0].finish_reason == "length"


async def test_completion_stream(api):
    stream = await api.completions.create(model="chat", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello, world!"


async def test_options_beside_openais_own(api, core):
    body = {"top_k": 3, "ignore_eos": True}
    await api.chat.completions.create(model="chat", messages=HI, extra_body=body, seed=1, temperature=0)
    assert core.requests[0].sampling.top_k == 3


async def test_refusal(api):
    with pytest.raises(openai.BadRequestError) as refused:
        await api.chat.completions.create(model="chat", messages=HI, logprobs=True)
    assert refused.value.param == "logprobs"
    assert refused.value.code == "unsupported_parameter"


async def test_other_model(api):
    with pytest.raises(openai.NotFoundError):
        await api.chat.completions.create(model="other", messages=HI)


async def test_error_in_a_stream_is_raised(api, core, state):
    from engine.errors import RequestError

    core.pause_after = 2
    stream = await api.chat.completions.create(model="chat", messages=HI, stream=True, extra_body={"request_id": "r"})
    assert await anext(aiter(stream))
    state.streams.fail(["r"], RequestError("the engine failed", status=500))
    with pytest.raises(openai.APIError, match="the engine failed"):
        [chunk async for chunk in stream]


async def test_models(api):
    assert [model.id async for model in api.models.list()] == ["chat"]
    assert (await api.models.retrieve("chat")).id == "chat"
