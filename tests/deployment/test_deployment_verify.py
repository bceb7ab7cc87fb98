"""A request through every pair, and every way in which it does not get through."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import httpx
import pytest

from pdctl.deployment import verify as verify_module
from pdctl.deployment.verify import CONCURRENCY, Engine, Pair, pairs, verify
from pdctl.errors import VerifyError
from pdctl.profiles import WarmUp

P = Engine("prefill-0", "http://p:1", "m")
D = Engine("decode-0", "http://d:1", "m")
PAIR = Pair(P, D)
WELL = {"choices": [{"text": "x"}]}
PINS = {"X-Router-Prefill-URL": P.url, "X-Router-Decode-URL": D.url}


async def ask(answer: Callable[[httpx.Request], Awaitable[httpx.Response]], *asked: Pair, **warm_up: float) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await verify(client, "http://router", "secret", list(asked), WarmUp(**warm_up))


def test_all_pairs() -> None:
    prefill, decode, mixed = ([Engine(f"{role}-{i}", f"http://{role}{i}", "m") for i in range(2)] for role in "pdm")
    names = {str(pair) for pair in pairs({"prefill": prefill, "decode": decode, "mixed": mixed})}
    assert names == {"p-0 x d-0", "p-0 x d-1", "p-1 x d-0", "p-1 x d-1", "m-0", "m-1"}


@pytest.mark.parametrize(("pair", "pins"), [(PAIR, PINS), (Pair(None, D), {"X-Router-Decode-URL": D.url})])
async def test_the_request(pair: Pair, pins: dict[str, str]) -> None:
    requests: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=WELL, headers=pins)

    await ask(answer, pair)
    (request,) = requests
    assert (request.method, request.url) == ("POST", "http://router/v1/completions")
    assert json.loads(request.content) == {"model": "m", "prompt": "Hello", "max_tokens": 2, "temperature": 0}
    assert {name: request.headers.get(name) for name in PINS if name in request.headers} == pins
    assert request.headers["X-Pdctl-Token"] == "secret"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            httpx.Response(503, text="no\n luck"),
            "through prefill-0 x decode-0 was answered with 503: no luck",
        ),
        (httpx.Response(200, json=WELL), "went elsewhere: X-Router-Prefill-URL is None"),
        (httpx.Response(200, json=WELL, headers=PINS | {"X-Router-Decode-URL": "http://e"}), "is http://e"),
        (httpx.Response(200, json={"choices": []}, headers=PINS), "without a choice"),
        (httpx.Response(200, text="not JSON", headers=PINS), "without a choice: not JSON"),
    ],
)
async def test_a_wrong_answer(response: httpx.Response, words: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return response

    with pytest.raises(VerifyError, match=words) as caught:
        await ask(answer, PAIR)
    assert caught.value.processes == ("prefill-0", "decode-0")


async def test_no_connection() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(VerifyError, match="prefill-0 x decode-0 failed: ConnectError: refused"):
        await ask(answer, PAIR)


async def test_no_answer() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(VerifyError, match=r"prefill-0 x decode-0 got no answer in 0\.05 s"):
        await ask(answer, PAIR, timeout_s=0.05)


async def test_so_many_at_once_and_no_more() -> None:
    now = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return httpx.Response(200, json=WELL, headers=PINS)

    await ask(answer, *[PAIR] * (3 * CONCURRENCY))
    assert most == CONCURRENCY


async def test_an_error_is_followed_by_another_try_where_that_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "RETRY_PAUSE_S", 0.0)
    answers = [httpx.Response(500), httpx.Response(200, json=WELL, headers=PINS)]

    async def answer(request: httpx.Request) -> httpx.Response:
        return answers.pop(0)

    await ask(answer, PAIR, retry_s=10)
    assert not answers
