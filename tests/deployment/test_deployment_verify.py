"""A request through every pair, and every way in which it does not get through."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import httpx
import pytest

from pdctl.deployment import verify as verify_module
from pdctl.deployment.engine_keys import engine_key
from pdctl.deployment.verify import CONCURRENCY, Engine, Pair, pairs, verify
from pdctl.errors import VerifyError
from pdctl.planning.plan import ProcessPlan
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


# Trying again.


def refused(status: int, code: str | None = None) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "no", "code": code}})


@pytest.mark.parametrize(
    ("error", "own", "warm_up_s", "early_s", "helps"),
    [
        (refused(500), True, 10, 0, True),
        (refused(500), True, 0, 10, False),
        (refused(404), True, 10, 10, False),
        (refused(401), False, 10, 10, False),
        (refused(400, "unknown_instance"), True, 0, 10, True),
        (refused(400, "unknown_instance"), True, 10, 0, False),
        (refused(400, "no_pair"), True, 10, 10, False),
        (refused(503, "no_instance"), True, 0, 10, True),
        (refused(500), False, 0, 10, True),
        (httpx.Response(503, text="No available prefill/decode workers"), False, 0, 10, True),
        (refused(500), False, 0, 0, False),
        (httpx.Response(200, json={"choices": []}, headers=PINS), False, 0, 10, True),
        (httpx.Response(200, json={"choices": []}, headers=PINS), True, 0, 10, False),
        (httpx.Response(200, json={"choices": []}, headers=PINS), True, 10, 0, True),
        (httpx.Response(200, json=WELL), True, 0, 10, False),
    ],
)
async def test_which_errors_are_followed_by_another_try(
    monkeypatch: pytest.MonkeyPatch, error: httpx.Response, own: bool, warm_up_s: float, early_s: float, helps: bool
) -> None:
    monkeypatch.setattr(verify_module, "RETRY_PAUSE_S", 0.0)
    answers = [error, error, httpx.Response(200, json=WELL, headers=PINS)]

    async def answer(request: httpx.Request) -> httpx.Response:
        return answers.pop(0)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        token, warm_up = "secret" if own else None, WarmUp(retry_s=warm_up_s)
        asked = verify(client, "http://router", token, [PAIR], warm_up, early_s=early_s)
        if helps:
            await asked
        else:
            with pytest.raises(VerifyError):
                await asked
    assert len(answers) == (0 if helps else 2)


# Engines that want an API key.


@pytest.mark.parametrize(
    ("keys", "sent"), [(("", ""), None), (("p", "d"), "Bearer d"), (("p", ""), "Bearer p"), (("", "d"), "Bearer d")]
)
async def test_the_engines_key_is_sent(keys: tuple[str, str], sent: str | None) -> None:
    requests: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=WELL, headers=PINS)

    await ask(answer, Pair(P._replace(key=keys[0]), D._replace(key=keys[1])))
    assert requests[0].headers.get("Authorization") == sent
    assert requests[0].headers["X-Pdctl-Token"] == "secret"


@pytest.mark.parametrize(
    ("key", "words"), [("", r"say which by `args: \{api-key: \.\.\.\}`"), ("k", "it carried the engine's API key")]
)
async def test_a_key_that_is_missing_or_wrong(key: str, words: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, text="Unauthorized")

    with pytest.raises(VerifyError, match=words):
        await ask(answer, Pair(P, D._replace(key=key)))


@pytest.mark.parametrize(
    ("argv", "changes", "expected"),
    [
        (["--port", "1"], {}, ""),
        (["--api-key", "a", "--api-key", "b"], {}, "b"),
        (["--api-key=a"], {"env": {"FD_API_KEY": "e"}}, "a"),
        (["--api-key"], {}, ""),
        ([], {"env": {"FD_API_KEY": "e, f"}}, "e"),
        ([], {"env": {"VLLM_API_KEY": "e"}}, "e"),
        ([], {"secrets": {"VLLM_API_KEY": {"env": "A_KEY"}}}, "from the environment"),
        ([], {"secrets": {"HF_TOKEN": {"env": "NOT_SET"}}}, ""),
    ],
)
def test_where_an_engines_key_is_found(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], changes: dict[str, object], expected: str
) -> None:
    monkeypatch.setenv("A_KEY", "from the environment")
    plan = {"name": "decode-0", "role": "decode", "host": "here", "argv": ["serve", *argv], **changes}
    assert engine_key(ProcessPlan.model_validate(plan)) == expected
