"""Our router before SGLang's stand-in, whose engines behave or do not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from router_processes import Process, ready
from standin_processes import (
    ASKED,
    CHAT,
    TEXT,
    StandIn,
    answer,
    ask,
    client,
    eventually,
    free_ports,
    read_cut,
    standin,
)
from standin_sglang_pair import MODEL, MODULE, Pair, engines

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def routed(*pairs: Pair) -> AsyncIterator[Process]:
    """Our router before them."""
    flags = ["--protocol", "sglang"]
    for pair in pairs:
        flags += ["--prefill", pair.prefill.url, str(pair.bootstrap), "--decode", pair.decode.url]
    async with ready(*flags) as router, client(router.port) as http:

        async def healthy() -> bool:
            number = (await http.get("/registered_number")).json()
            return number["prefill"] == number["decode"] == len(pairs)

        await eventually(healthy, "the router to see its engines")
        yield router


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """A pair with a router, for all tests that leave it alive."""
    async with engines("--enable-metrics") as found, routed(found) as router:
        found.router = router
        yield found
        assert await found.prefill.violations() == await found.decode.violations() == []


# Serving.


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, CHAT),
        ({"stream": True}, CHAT),
        ({"n": 2}, CHAT),
        ({"n": 2, "stream": True}, CHAT),
        ({"prompt": ["one", "two"], "n": 2, "max_tokens": 3}, TEXT),
        ({"prompt": [[1, 2], [3]], "stream": True}, TEXT),
    ],
)
async def test_a_pair_answers_as_one_engine_does(pair: Pair, mixed: StandIn, body: dict[str, Any], path: str):
    expected = answer(await mixed.post(ASKED | body if path == CHAT else body, path))
    assert answer(await ask(pair.router, body, path)) == expected
    await pair.prefill.idle()
    await pair.decode.idle()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed() -> AsyncIterator[StandIn]:
    async with standin(MODULE, *MODEL, port=free_ports(1)[0]) as found:
        await found.healthy()
        yield found


async def test_usage_and_metrics(pair: Pair):
    before = await figures(pair.decode)
    response = await ask(pair.router, {"max_tokens": 7, "stream": True, "stream_options": {"include_usage": True}})
    assert '"completion_tokens": 7' in response.text
    after = await figures(pair.decode)
    assert after["sglang:generation_tokens_total"] - before["sglang:generation_tokens_total"] == 7
    assert after["sglang:num_running_reqs"] == 0
    assert (await pair.prefill.get("/metrics")).status_code == 404, "without --enable-metrics"


async def figures(engine: StandIn) -> dict[str, float]:
    lines = [line for line in (await engine.get("/metrics")).text.splitlines() if not line.startswith("#")]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


async def test_decodes_ask_for_the_bootstrap_servers_health(pair: Pair):
    await ask(pair.router, {})
    async with client(pair.bootstrap) as http:
        assert (await http.get("/health")).status_code == 200

    async def asked() -> bool:
        return (await pair.prefill.get("/standin/heartbeats")).json() >= 3

    await eventually(asked, "two heartbeats of the decode")


async def test_a_mixed_engine_is_told_of_no_room(mixed: StandIn):
    assert (await mixed.post(ASKED | {"bootstrap_room": 1})).status_code == 400
    assert await mixed.violations() == ["bootstrap_room at an engine without --disaggregation-mode"]


# Engines that misbehave behind our router. Nobody is left waiting for anybody.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ({"fail": "refuse", "role": "prefill", "status": 400}, 400, "told to refuse"),
        ({"fail": "refuse", "role": "decode", "status": 500}, 500, "told to refuse"),
        ({"fail": "refuse", "role": "decode", "when": "met", "status": 503}, 503, "told to refuse"),
        ({"fail": "drop", "role": "prefill"}, 502, "prefill instance"),
        ({"fail": "drop", "role": "decode"}, 502, "decode instance"),
    ],
)
async def test_a_leg_that_fails_takes_the_other_one_with_it(
    pair: Pair, fault: dict[str, object], status: int, said: str, stream: bool
):
    response = await ask(pair.router, {"standin": fault, "stream": stream})
    assert response.status_code == status
    assert said in response.text
    await pair.prefill.idle()
    await pair.decode.idle()


async def test_a_stream_that_breaks_ends_with_an_error_event(pair: Pair):
    body = ASKED | {"stream": True, "standin": {"fail": "drop", "role": "decode", "when": "streaming", "after": 2}}
    async with client(pair.router.port) as http, http.stream("POST", CHAT, json=body) as response:
        lines = await read_cut(response)
    assert sum('"content"' in line for line in lines) == 3, "the role and two tokens"
    assert "event: error" in lines[-3:]
    await pair.decode.idle()


async def test_a_stream_whose_kv_does_not_come_is_an_error_with_a_status():
    async with engines(SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT="0.3") as impatient, routed(impatient) as router:
        response = await ask(router, {"stream": True, "standin": {"fail": "hang", "role": "prefill"}})
        assert (response.status_code, response.json()["error"]["code"]) == (502, "decode_failed")
        assert "KVTransferError" in response.text
        await impatient.prefill.idle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_that_leaves_ends_both_legs(pair: Pair, role: str):
    body = ASKED | {"standin": {"fail": "hang", "role": role, "when": "met"}}
    async with client(pair.router.port) as http:
        request = asyncio.create_task(http.post(CHAT, json=body))
        await pair.decode.holds()
        request.cancel()
    await pair.decode.idle()
    await pair.prefill.idle()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def four(pair: Pair) -> AsyncIterator[tuple[Process, Pair, Pair]]:
    """Two pairs and a router that has both."""
    async with engines() as other, routed(pair, other) as router:
        yield router, pair, other


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_another_engine_serves_what_one_cannot(four: tuple[Process, Pair, Pair], role: str):
    """In another room: engines would otherwise complain."""
    router, *pairs = four
    failing = getattr(pairs[0], role)
    fault = {"fail": "drop", "port": failing.port}
    responses = await asyncio.gather(*(ask(router, {"standin": fault}) for _ in range(4)))
    assert all(answer(response) for response in responses)
    assert failing.url not in [response.headers[f"x-router-{role}-url"] for response in responses]
    for engine in (engine for pair in pairs for engine in (pair.prefill, pair.decode)):
        await engine.idle()
        assert await engine.violations() == []


async def test_a_prefill_that_dies_with_the_kv(four: tuple[Process, Pair, Pair]):
    router, _, dying = four
    fault = {"fail": "die", "when": "met", "port": dying.prefill.port}
    responses = await asyncio.gather(*(ask(router, {"standin": fault}) for _ in range(4)))
    assert all(answer(response) for response in responses)
    assert await dying.prefill.exit() == 1
    await dying.decode.idle()
