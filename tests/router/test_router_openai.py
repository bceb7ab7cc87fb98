"""The router as the OpenAI client sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from router_mocks import LIMIT, Running, Split, Turn, hold, running, split

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


def delta(content: str, finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


@asynccontextmanager
async def client(at: Running) -> AsyncIterator[AsyncOpenAI]:
    url = f"http://127.0.0.1:{at.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="key", max_retries=0, timeout=LIMIT) as openai_client:
        yield openai_client


async def complete(turn: Turn) -> None:
    await turn.answer(COMPLETION)


async def stream(turn: Turn) -> None:
    await turn.start_stream()
    for content in ("Pa", "ris", "."):
        await turn.event(delta(content))
    await turn.event(delta("", "stop"))
    await turn.event(b"[DONE]")
    await turn.end_stream()


async def test_a_completion():
    async with split(on_decode=complete) as pair, client(pair.at) as c:
        answer = await c.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "Paris."
        assert answer.usage.total_tokens == 9
        turn = await pair.decode.turn()
        assert turn.headers["authorization"] == "Bearer key"


async def test_a_stream():
    async with split(on_decode=stream) as pair, client(pair.at) as c:
        chunks = [chunk async for chunk in await c.chat.completions.create(model="m", messages=MESSAGES, stream=True)]
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "Paris."
        assert chunks[-1].choices[0].finish_reason == "stop"


async def test_streams_at_once():
    async def one(c: AsyncOpenAI) -> str:
        answer = await c.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content async for chunk in answer])

    async with split(on_decode=stream) as pair, client(pair.at) as c:
        assert await asyncio.gather(*(one(c) for _ in range(20))) == ["Paris."] * 20
        await pair.at.idle()


async def test_models():
    async with split() as pair, client(pair.at) as c:
        assert [model.id async for model in c.models.list()] == ["m"]
        assert (await c.models.retrieve("m")).id == "m"
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await c.models.retrieve("other")


async def test_errors_of_the_router():
    async with running() as at, client(at) as c:
        with pytest.raises(openai.InternalServerError, match="no mixed instance is registered") as caught:
            await c.chat.completions.create(model="m", messages=MESSAGES)
        assert (caught.value.status_code, caught.value.code) == (503, "no_instance")


async def test_errors_of_an_engine():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long", "type": "invalid_request_error", "code": "c"}}, 400)

    async with split(on_decode=refuse) as pair, client(pair.at) as c:
        with pytest.raises(openai.BadRequestError, match="too long"):
            await c.chat.completions.create(model="m", messages=MESSAGES)


async def begin(pair: Split, c: AsyncOpenAI) -> tuple[Turn, openai.AsyncStream]:
    sending = asyncio.create_task(c.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    turn = await pair.decode.turn()
    await turn.start_stream()
    await turn.event(delta("Pa"))
    answer = await sending
    assert (await anext(answer)).choices[0].delta.content == "Pa"
    return turn, answer


async def test_a_broken_stream_raises():
    async with split(on_decode=hold) as pair, client(pair.at) as c:
        turn, answer = await begin(pair, c)
        turn.drop()
        with pytest.raises(openai.APIError, match="decode instance"):
            await anext(answer)


async def test_a_stream_cut_within_an_event_raises():
    async with split(on_decode=hold) as pair, client(pair.at) as c:
        turn, answer = await begin(pair, c)
        await turn.chunk(b"data: {")
        turn.drop()
        with pytest.raises(openai.APIConnectionError):
            await anext(answer)


async def test_leaving_a_stream_reaches_the_engine():
    async with split(on_decode=hold) as pair, client(pair.at) as c:
        turn, answer = await begin(pair, c)
        await answer.close()
        await turn.peer_left()
        await pair.at.idle()
