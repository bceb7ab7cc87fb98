"""The `openai` client gets through the router what it would get from an engine itself, whatever the protocol."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai_answers import ASK, CHATS, COMPLETIONS, PARAMS, chat, chunk
from router_mocks import LIMIT, MockEngine, Running, Split, Turn, engine, hold, quick, running

from pdctl.router.access.api_keys import ApiKey, ApiKeys

Answering = Callable[[Turn], Awaitable[None]]


def saying(said: dict[str, Any] | list[dict[str, Any]]) -> Answering:
    async def answer(turn: Turn) -> None:
        if isinstance(said, dict):
            await turn.answer(said)
            return
        await turn.start_stream()
        for event in said:
            await turn.event(event)
        await turn.event(b"[DONE]")
        await turn.end_stream()

    return answer


async def prefill(turn: Turn) -> None:
    """A prefill of any protocol."""
    await turn.answer(chat({"content": "K"}, "length") | {"kv_transfer_params": PARAMS})


@asynccontextmanager
async def served(protocol: str, decode: Answering, **options: Any) -> AsyncIterator[Split]:
    """A router before engines of a protocol; `mixed-`: without a prefill."""
    mixed, name = protocol.startswith("mixed-"), protocol.removeprefix("mixed-")
    async with engine(prefill) as p, engine(decode) as d, running(splitwise=not mixed, **options) as at:
        if not mixed:
            await at.admit("prefill", p, protocol=name, bootstrap_port=8998)
        await at.admit("mixed" if mixed else "decode", d, protocol=name)
        yield Split(at, p, d)


@asynccontextmanager
async def client(at: Running | MockEngine, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    url = f"http://127.0.0.1:{at.port}/v1"
    async with AsyncOpenAI(base_url=url, **({"api_key": "key", "max_retries": 0, "timeout": LIMIT} | options)) as c:
        yield c


async def everything(answer: Any) -> list[Any]:
    """What a client got, without what it keeps for itself."""
    if isinstance(answer, openai.AsyncStream):
        return [piece.model_dump() async for piece in answer]
    return [answer.model_dump()]


PROTOCOLS = ["builtin", "fastdeploy", "vllm-nixl", "sglang", "mixed-builtin", "mixed-vllm-nixl"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_through_the_router_is_the_engines(name: str, protocol: str):
    asked, said = CHATS[name]
    async with served(protocol, saying(said)) as pair, client(pair.at) as c, client(pair.decode) as direct:
        wanted = await everything(await direct.chat.completions.create(**ASK, **asked))
        got = await everything(await c.chat.completions.create(**ASK, **asked))
        assert got == wanted
        assert len(got) == (1 if isinstance(said, dict) else len(said))
        await check_bodies(pair, ASK | asked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", COMPLETIONS)
async def test_a_completion_through_the_router_is_the_engines(name: str, protocol: str):
    asked, said = COMPLETIONS[name]
    async with served(protocol, saying(said)) as pair, client(pair.at) as c, client(pair.decode) as direct:
        wanted = await everything(await direct.completions.create(model="m", **asked))
        assert await everything(await c.completions.create(model="m", **asked)) == wanted
        await check_bodies(pair, {"model": "m"} | asked)


async def check_bodies(pair: Split, asked: dict[str, Any]) -> None:
    """The decode was asked what the client asked, directly and through the router; a prefill for the same prompt."""
    for _ in range(2):
        turn = await pair.decode.turn()
        assert {name: turn.json[name] for name in asked} == asked
        assert turn.headers["authorization"] == "Bearer key"
        assert turn.headers["content-type"] == "application/json"
    for turn in [pair.prefill.turns.get_nowait() for _ in range(pair.prefill.turns.qsize())]:
        assert {
            name: turn.json[name] for name in ("model", "messages", "prompt") if name in asked
        }.items() <= asked.items()
    await pair.at.idle()


# Errors.

ERRORS = [
    (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError), (409, openai.ConflictError), (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError), (500, openai.InternalServerError), (503, openai.InternalServerError),
]  # fmt: skip


@pytest.mark.parametrize("protocol", ["builtin", "vllm-nixl", "mixed-builtin"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("status", "kind"), ERRORS)
async def test_an_engines_error_is_raised_as_its_own(
    status: int, kind: type[openai.APIStatusError], streaming: bool, protocol: str
):
    async def refuse(turn: Turn) -> None:
        error = {"message": "no \u2603", "type": "its_type", "param": "messages", "code": "its_code"}
        await turn.answer({"error": error}, status, "Retry-After: 7\r\n")

    async with served(protocol, refuse) as pair, client(pair.at) as c:
        with pytest.raises(kind, match="no \u2603") as caught:
            await c.chat.completions.create(**ASK, stream=streaming)
        error = caught.value
        assert (error.status_code, error.code, error.type, error.param) == (status, "its_code", "its_type", "messages")
        assert error.response.headers["retry-after"] == "7"
        assert error.request_id == (await pair.decode.turn()).headers["x-request-id"]
        await pair.at.idle()


async def test_errors_of_the_router_have_a_message_and_a_code():
    async with running() as at, client(at) as c:
        with pytest.raises(openai.InternalServerError, match="no mixed instance is registered") as caught:
            await c.completions.create(model="m", prompt="x", stream=True)
        assert (caught.value.status_code, caught.value.code, caught.value.type) == (503, "no_instance", "server_error")
        with pytest.raises(openai.BadRequestError) as refused:
            await c.post("/chat/completions", cast_to=object, body={"model": 7})
        assert (refused.value.code, refused.value.type) == ("invalid_body", "invalid_request_error")
        with pytest.raises(openai.NotFoundError, match="nothing at /v1/embeddings"):
            await c.embeddings.create(model="m", input="x")


async def test_a_full_router_is_a_rate_limit_that_says_when_to_come_back():
    async with served("mixed-builtin", hold, engine_requests=1, queue_size=0) as pair, client(pair.at) as c:
        first = asyncio.create_task(c.chat.completions.create(**ASK))
        turn = await pair.decode.turn()
        with pytest.raises(openai.RateLimitError) as caught:
            await c.chat.completions.create(**ASK)
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) > 0
        await saying(CHATS["text"][1])(turn)
        assert (await first).choices[0].message.content
        await pair.at.idle()


async def test_keys_are_checked_and_their_limits_are_rate_limits():
    keys = ApiKeys([ApiKey(0, "team", sha256(b"right").digest(), requests_per_minute=1)])
    async with served("mixed-builtin", saying(CHATS["text"][1]), api_keys=keys) as pair:
        async with client(pair.at, api_key="wrong") as c:
            with pytest.raises(openai.AuthenticationError, match="API key") as caught:
                await c.chat.completions.create(**ASK)
            assert caught.value.code == "invalid_api_key"
        async with client(pair.at, api_key="right") as c:
            assert (await c.chat.completions.create(**ASK)).choices
            with pytest.raises(openai.RateLimitError) as limited:
                await c.chat.completions.create(**ASK)
            assert limited.value.code == "rate_limit_exceeded"
            assert int(limited.value.response.headers["retry-after"]) > 0


# Time, and clients that leave.


@pytest.mark.parametrize("protocol", ["builtin", "vllm-nixl", "sglang", "mixed-builtin"])
async def test_a_client_whose_patience_ends_frees_its_engines(protocol: str):
    async with served(protocol, hold) as pair, client(pair.at, timeout=0.2) as c:
        with pytest.raises(openai.APITimeoutError):
            await c.chat.completions.create(**ASK)
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


async def test_a_request_that_takes_too_long_is_the_routers_error():
    async with served("builtin", hold, request_timeout=0.2) as pair, client(pair.at) as c:
        with pytest.raises(
            openai.InternalServerError, match=f"decode instance {pair.decode.url}: waited 0.2 s"
        ) as caught:
            await c.chat.completions.create(**ASK)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        await (await pair.decode.turn()).peer_left()


async def begin(pair: Split, c: AsyncOpenAI) -> tuple[Turn, openai.AsyncStream[Any]]:
    sending = asyncio.create_task(c.chat.completions.create(**ASK, stream=True))
    turn = await pair.decode.turn()
    await turn.start_stream()
    await turn.event(chunk({"content": "K"}))
    stream = await sending
    assert (await anext(stream)).choices[0].delta.content == "K"
    return turn, stream


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stream_that_is_closed_closes_its_engines_connections(protocol: str):
    async with served(protocol, hold) as pair, client(pair.at) as c:
        pair.prefill.on_request = prefill if protocol == "vllm-nixl" else hold
        turn, stream = await begin(pair, c)
        await stream.close()
        await turn.peer_left()
        if protocol != "vllm-nixl" and not protocol.startswith("mixed"):
            await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_a_task_that_is_cancelled_closes_its_engines_connections():
    async with served("builtin", hold) as pair, client(pair.at) as c:
        pair.prefill.on_request = hold
        sending = asyncio.create_task(c.chat.completions.create(**ASK))
        legs = await pair.prefill.turn(), await pair.decode.turn()
        sending.cancel()
        await asyncio.gather(*(leg.peer_left() for leg in legs))
        await pair.at.idle()


@pytest.mark.parametrize("protocol", ["fastdeploy", "vllm-nixl", "sglang", "mixed-fastdeploy", "mixed-builtin"])
async def test_a_stream_that_breaks_raises(protocol: str):
    async with served(protocol, hold, limits=quick(resume_wait=0.1)) as pair, client(pair.at) as c:
        turn, stream = await begin(pair, c)
        pair.decode.on_request = Turn.drop  # type: ignore[assignment]
        turn.drop()
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
        assert caught.value.code in ("decode_failed", "mixed_failed", "no_instance")
        assert caught.value.body["type"] == "server_error"
        await pair.at.idle()


async def test_an_engines_own_error_event_raises_with_its_words():
    async with served("fastdeploy", hold) as pair, client(pair.at) as c:
        turn, stream = await begin(pair, c)
        await turn.event({"error": {"message": "out of blocks", "type": "server_error", "param": None, "code": "oom"}})
        await turn.end_stream()
        with pytest.raises(openai.APIError, match="out of blocks"):
            await anext(stream)


# What else the client can do.


async def test_models():
    async with served("builtin", hold) as pair, client(pair.at) as c:
        await pair.at.admit("decode", pair.decode, model="org/model \u2603", max_model_len=99)
        [model] = [model async for model in c.models.list() if model.id != "m"]
        assert (model.id, model.object, model.owned_by) == ("org/model \u2603", "model", "pdctl")
        assert await c.models.retrieve("org/model \u2603") == model
        with pytest.raises(openai.NotFoundError, match="the model other is not served here") as caught:
            await c.models.retrieve("other")
        assert caught.value.code == "model_not_found"


async def test_what_the_client_adds_reaches_the_engine_and_what_comes_back_the_client():
    async def answer(turn: Turn) -> None:
        await turn.answer(CHATS["text"][1], headers="X-Engine: e\r\nOpenAI-Processing-Ms: 5\r\n")

    async with served("mixed-builtin", answer) as pair, client(pair.at, default_headers={"X-Team": "t"}) as c:
        raw = await c.chat.completions.with_raw_response.create(
            **ASK,
            extra_headers={"X-Trace": "abc", "X-Request-Id": "mine"},
            extra_query={"a": "b"},
            extra_body={"top_k": 3},
        )
        turn = await pair.decode.turn()
        assert turn.target == "/v1/chat/completions?a=b"
        assert (turn.json["top_k"], turn.json["request_id"]) == (3, "mine")
        assert (turn.headers["x-team"], turn.headers["x-trace"], turn.headers["x-request-id"]) == ("t", "abc", "mine")
        assert turn.headers["user-agent"].startswith("AsyncOpenAI/")
        assert (raw.headers["x-engine"], raw.headers["openai-processing-ms"]) == ("e", "5")
        assert raw.headers["x-router-decode-url"] == pair.decode.url
        assert raw.parse()._request_id == raw.headers["x-request-id"] == "mine"


async def test_the_blocking_client():
    asked, said = CHATS["stream, tools"]

    def ask(port: int) -> tuple[str, str]:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="key", timeout=LIMIT, max_retries=0) as c:
            stream = c.chat.completions.create(**ASK, **asked)
            calls = [call for piece in stream for choice in piece.choices for call in choice.delta.tool_calls or ()]
            with pytest.raises(openai.NotFoundError):
                c.models.retrieve("other")
            return "".join(call.function.arguments or "" for call in calls if not call.index), c.models.list().data[
                0
            ].id

    async with served("builtin", saying(said)) as pair:
        arguments, model = await asyncio.to_thread(ask, pair.at.port)
        assert json.loads(arguments) == {"city": "K\u00f6ln"}
        assert model == "m"
