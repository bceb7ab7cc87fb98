"""A stream that goes on elsewhere, where the engines that should go on with it fail in their turn."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from router_mocks import ANSWER, PROMPT, MockEngine, Running, Turn, engine, hold, quick, running

STREAM = PROMPT | {"stream": True}
Handler = Callable[[Turn], Awaitable[None]]


def event(*token_ids: int) -> bytes:
    choice = {"index": 0, "delta": {}, "token_ids": list(token_ids)}
    return json.dumps({"id": "x", "created": 7, "choices": [choice]}, separators=(",", ":")).encode()


async def begin_and_drop(turn: Turn) -> None:
    await turn.start_stream()
    await turn.event(event(1, 2))
    turn.drop()


async def refuse(turn: Turn) -> None:
    await turn.answer({"error": {"message": "no room"}}, 503)


async def drop(turn: Turn) -> None:
    turn.drop()


async def go_on(turn: Turn) -> None:
    assert turn.json["resume"]["token_ids"] == [1, 2]
    await turn.start_stream()
    await turn.event(event(3))
    await turn.event(b"[DONE]")
    await turn.end_stream()


async def prefilled(turn: Turn) -> None:
    await turn.answer(ANSWER)


def in_turn(*handlers: Handler) -> Handler:
    """What the engines of a role do with the first request that comes to any of them, the second, and so on."""
    left = list(handlers)

    async def handle(turn: Turn) -> None:
        await left.pop(0)(turn)

    return handle


@dataclass
class Four:
    at: Running
    prefills: list[MockEngine]
    decodes: list[MockEngine]


@asynccontextmanager
async def four(on_prefill: Handler, on_decode: Handler) -> AsyncIterator[Four]:
    """A router with two engines of each role."""
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(running(splitwise=True, limits=quick(resume_wait=1.0)))
        engines: dict[str, list[MockEngine]] = {"prefill": [], "decode": []}
        for role, handler in [("prefill", on_prefill), ("decode", on_decode)] * 2:
            mock = await stack.enter_async_context(engine(handler))
            await at.admit(role, mock, protocol="builtin")
            engines[role].append(mock)
        yield Four(at, engines["prefill"], engines["decode"])


def tokens(text: str) -> list[int]:
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [token for one in events for token in json.loads(one)["choices"][0]["token_ids"]]


AGAIN = pytest.mark.parametrize("again", [[refuse], [drop, drop]])  # a kept-alive connection that drops is replaced


@AGAIN
async def test_decode_that_should_go_on_fails_too(again: list[Handler]) -> None:
    """What it answers cannot be the client's, which is in the middle of a stream: another one goes on."""
    async with four(prefilled, in_turn(begin_and_drop, *again, go_on)) as deployment:
        response = await deployment.at.post(STREAM)
        assert tokens(response.text) == [1, 2, 3]
        assert response.text.endswith("data: [DONE]\n\n")
        await deployment.at.idle()
        assert deployment.at.metrics.resumes.value == 2


@AGAIN
async def test_prefill_that_should_go_on_fails(again: list[Handler]) -> None:
    """Its decode would wait for it in vain: the next pair is not kept waiting."""
    async with four(in_turn(prefilled, *again, prefilled), in_turn(begin_and_drop, hold, go_on)) as deployment:
        response = await deployment.at.post(STREAM)
        assert tokens(response.text) == [1, 2, 3]
        await deployment.at.idle()
        assert deployment.at.metrics.resumes.value == 2


async def test_refusal_that_no_engine_betters() -> None:
    """The client is told within its stream, and not kept waiting."""

    async def refuse_for_good(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long"}}, 400)

    async with four(prefilled, in_turn(begin_and_drop, refuse_for_good)) as deployment:
        body = json.dumps(STREAM).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        told = await deployment.at.say(head + body)
        assert b"event: error" in told
        assert b'"code":"resume_failed"' in told
        assert not told.endswith(b"0\r\n\r\n")
        await deployment.at.idle()
        assert deployment.at.metrics.resumes.value == 1
