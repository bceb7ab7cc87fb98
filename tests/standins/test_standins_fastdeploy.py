"""Our router, at which FastDeploy's stand-ins register, that behave or do not."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from router_processes import Process, ready
from standin_fastdeploy_pair import MODEL, MODULE, MULTI, Pair, engines, fd
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
    run,
    standin,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def registered(router: Process, **numbers: int) -> None:
    """Wait for so many engines at the router."""

    async def are_there() -> bool:
        found = (await http.get("/registered_number")).json()
        return all(found[role] == number for role, number in numbers.items())

    async with client(router.port) as http:
        await eventually(are_there, f"{numbers} to register")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router() -> AsyncIterator[Process]:
    async with ready("--splitwise") as found:
        yield found


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(router: Process, logs: Path) -> AsyncIterator[Pair]:
    """A pair with our router, for all tests that leave it alive."""
    async with engines(router.port, logs) as found:
        await registered(router, prefill=1, decode=1)
        found.router = router
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed(logs: Path) -> AsyncIterator[StandIn]:
    async with standin(MODULE, *MODEL, port=free_ports(1)[0], FD_LOG_DIR=str(logs / "mixed")) as found:
        await found.healthy()
        yield found


# Serving.


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, CHAT),
        ({"stream": True}, CHAT),
        ({"n": 2}, CHAT),
        ({"n": 2, "stream": True}, CHAT),
        ({"prompt": ["one", "two"], "max_tokens": 3}, TEXT),
    ],
)
async def test_a_pair_answers_as_one_engine_does(pair: Pair, mixed: StandIn, body: dict[str, Any], path: str):
    expected = answer(await mixed.post(ASKED | body if path == CHAT else body, path))
    assert answer(await ask(pair.router, body, path)) == expected
    for found in (pair.prefill, pair.decode):
        await found.idle()
        assert await found.violations() == []


async def test_metrics_are_at_their_own_port(pair: Pair):
    assert (await pair.decode.get("/metrics")).status_code == 404
    assert "fastdeploy:num_requests_running{" in (await pair.prefill.get("/metrics")).text


# Engines that misbehave behind our router. Nobody is left waiting for anybody.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ({"fail": "refuse", "role": "prefill", "status": 400}, 400, "told to refuse"),
        ({"fail": "refuse", "role": "decode", "status": 500}, 500, "told to refuse"),
        ({"fail": "drop", "role": "prefill"}, 502, "prefill instance"),
        ({"fail": "drop", "role": "decode"}, 502, "decode instance"),
    ],
)
async def test_a_leg_that_fails_takes_the_other_one_with_it(
    pair: Pair, fault: dict[str, object], status: int, said: str, stream: bool
):
    """Though D sends a stream's head at once, before it knows of P."""
    response = await ask(pair.router, {"standin": fault, "stream": stream})
    assert response.status_code == status
    assert said in response.text
    await pair.prefill.idle()
    await pair.decode.idle()


async def test_a_stream_that_breaks_ends_with_an_error_event(pair: Pair):
    body = ASKED | {"stream": True, "standin": {"fail": "drop", "role": "decode", "when": "streaming", "after": 1}}
    async with client(pair.router.port) as http, http.stream("POST", CHAT, json=body) as response:
        assert "event: error" in (await read_cut(response))[-3:]
    await pair.decode.idle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_that_leaves_ends_both_legs(pair: Pair, role: str):
    body = ASKED | {"standin": {"fail": "hang", "role": role, "when": "met"}}
    async with client(pair.router.port) as http:
        request = asyncio.create_task(http.post(CHAT, json=body))
        await pair.decode.holds()
        request.cancel()
    await pair.decode.idle()
    await pair.prefill.idle()


async def test_an_abort_reaches_both_legs(pair: Pair):
    asked = {"standin": {"fail": "hang", "role": "decode", "when": "met"}, "request_id": "to-abort"}
    request = asyncio.create_task(ask(pair.router, asked))
    await pair.decode.holds()
    async with client(pair.router.port) as http:
        assert (await http.post("/v1/abort_requests", json={"req_ids": ["to-abort"]})).status_code == 200
    assert "aborted" in (await request).text
    await pair.decode.idle()
    await pair.prefill.idle()


async def test_a_request_waits_for_blocks_of_d(pair: Pair):
    """P asks again and again, and holds nobody up but itself."""
    body = ASKED | {"standin": {"fail": "no-blocks"}}
    async with client(pair.router.port) as http:
        request = asyncio.create_task(http.post(CHAT, json=body))
        await pair.prefill.holds()
        assert answer(await ask(pair.router, {}))
        request.cancel()
    await pair.prefill.idle()
    await pair.decode.idle()


async def test_another_engine_serves_what_one_cannot(pair: Pair, logs: Path):
    """And a P that asks D only once for blocks gets an answer, or gives up."""
    env = {"PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES": "0"}
    async with fd("prefill", pair.router.port, logs=logs, **env) as other:
        await registered(pair.router, prefill=2)
        for fault in ({"fail": "drop", "port": other.port}, {"fail": "die", "when": "met", "port": other.port}):
            responses = await asyncio.gather(*(ask(pair.router, {"standin": fault}) for _ in range(4)))
            assert all(answer(response) for response in responses)
            assert other.url not in [response.headers["x-router-prefill-url"] for response in responses]
        assert await other.exit() == 1
    await pair.decode.idle()
    async with client(pair.router.port) as http:
        await http.delete(f"/instances/127.0.0.1:{other.port}")
    await registered(pair.router, prefill=1)


async def test_two_data_parallel_ranks_are_two_servers(pair: Pair, logs: Path):
    first, second, metrics, more, *lists = free_ports(10)
    queues, caches, comms = (f"{lists[i]},{lists[i + 1]}" for i in (0, 2, 4))
    ours = ("--num-servers", 2, "--ports", f"{first},{second}", "--metrics-ports", f"{metrics},{more}")
    theirs = ("--engine-worker-queue-port", queues, "--cache-queue-port", caches, "--pd-comm-port", comms)
    theirs = (*theirs, "--data-parallel-size", 2, "--splitwise-role", "decode")
    env = {"FD_LOG_DIR": str(logs / "dp"), "STANDIN_REGISTER_S": "0.2", "CUDA_VISIBLE_DEVICES": "6,7"}
    flags = (*ours, "--args", *MODEL, *theirs, "--router", f"0.0.0.0:{pair.router.port}")
    assert (await run(MULTI, *flags, **env))[0] == 2, "without FD_ENABLE_MULTI_API_SERVER"
    async with standin(MULTI, *flags, **env, FD_ENABLE_MULTI_API_SERVER="1") as servers:
        await registered(pair.router, decode=3)
        async with client(pair.router.port) as http:
            registrations = (await http.get("/registered")).json()["decode"]
        assert sorted(found["device_ids"] for found in registrations) == [["1"], ["6"], ["7"]]
        used = [(await ask(pair.router, {})).headers["x-router-decode-url"] for _ in range(6)]
        assert len(set(used)) == 3
        children = psutil.Process(servers.process.pid).children()
        assert len(children) == 2
        servers.process.send_signal(signal.SIGINT)
        assert await servers.exit() == 0
        assert not any(child.is_running() for child in children)
