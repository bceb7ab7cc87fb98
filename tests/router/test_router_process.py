"""The router as a process: its command line, what it tells its agent, and how it ends."""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from router_mocks import ANSWER, CHAT, LIMIT, PROMPT, MockEngine, Turn, engine, hold
from router_processes import Process, process, ready

from pdctl.errors import ExitCode


async def test_it_serves_a_pair_and_ends_on_request():
    async with engine() as prefill, engine() as decode, ready("--splitwise") as router:
        assert (await router.register("prefill", prefill)).status_code == 200
        assert (await router.register("decode", decode)).status_code == 200
        async with router.http() as http:
            response = await http.post(CHAT, json=PROMPT)
            assert (response.status_code, response.json()) == (200, ANSWER)
            router.kill()  # with an idle kept-alive connection open
            assert await router.exit() == 0


@asynccontextmanager
async def one_request_in_flight(router: Process) -> AsyncIterator[tuple[asyncio.Task[httpx.Response], MockEngine]]:
    async with engine(hold) as mixed, router.http() as http:
        assert (await router.register("mixed", mixed)).status_code == 200
        yield asyncio.create_task(http.post(CHAT, json=PROMPT)), mixed


async def test_a_request_in_flight_may_end():
    async with ready("--drain-secs", "30") as router, one_request_in_flight(router) as (request, mixed):
        turn = await mixed.turn()
        router.kill()
        await router.wait_for_log("stopping: 1 requests in flight")
        with pytest.raises(httpx.ConnectError):
            await router.register("mixed", mixed)
        await turn.answer(ANSWER)
        response = await request
        assert (response.status_code, response.headers["connection"]) == (200, "close")
        assert await router.exit() == 0


async def test_a_stream_that_ends_while_it_drains_is_its_clients_last():
    async def begin_stream(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"n": 1})
        await hold(turn)

    async with ready("--drain-secs", "60") as router, engine(begin_stream) as mixed, router.http() as http:
        assert (await router.register("mixed", mixed)).status_code == 200
        async with http.stream("POST", CHAT, json=PROMPT) as response:
            turn = await mixed.turn()
            lines = response.aiter_lines()
            assert await anext(lines) == 'data: {"n": 1}'
            router.kill()
            await router.wait_for_log("stopping: 1 requests in flight")
            await turn.end_stream()
            assert [line async for line in lines] == [""]
            assert await router.exit() == 0  # though the client would keep its connection
        assert "cutting" not in router.log


async def test_new_requests_are_refused_while_the_last_ones_end():
    async with ready("--drain-secs", "30") as router, one_request_in_flight(router) as (request, mixed):
        turn = await mixed.turn()
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        body = json.dumps(PROMPT).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write(head)  # not idle, so its connection outlives the beginning of the end
        async with router.http() as http:
            await http.get("/health/live")  # answered, so what was written before has been read
        router.kill()
        await router.wait_for_log("stopping")
        writer.write(body)
        async with asyncio.timeout(LIMIT):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await turn.answer(ANSWER)
        assert (await request).status_code == 200
        assert await router.exit() == 0


async def test_what_does_not_end_in_time_is_cut():
    async with ready("--drain-secs", "0.2") as router, one_request_in_flight(router) as (request, mixed):
        turn = await mixed.turn()
        router.kill()
        response = await request
        assert (response.status_code, response.json()["error"]["code"]) == (503, "stopping")
        await turn.peer_left()
        assert await router.exit() == 0
        assert "cutting 1 requests after 0.2 s" in router.log


async def test_a_second_signal_ends_it_at_once():
    async with ready("--drain-secs", "60") as router, one_request_in_flight(router) as (request, mixed):
        await mixed.turn()
        router.kill()
        await router.wait_for_log("stopping")
        router.kill()
        assert await router.exit() == 0
        assert "stopping at once: 1 requests are cut" in router.log
        with pytest.raises(httpx.RemoteProtocolError):
            await request


async def test_a_taken_port_is_explained():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with process("--port", str(port)) as router:
            assert await router.exit() == ExitCode.PLAN
            assert router.log.count("\n") == 1
            assert f"port {port} on 127.0.0.1 is taken by " in router.log
            assert f"(pid {os.getpid()})" in router.log


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "70000"),
        ("--port", "x"),
        ("--prefill-policy", "best"),
        ("--decode-policy", "best"),
        ("--protocol", "telepathy"),
        ("--workers", "65"),
        ("--health-failures", "0"),
        ("--queue-size", "-1"),
        ("--drain-secs", "-1"),
        ("--request-timeout-secs", "nan"),
        ("--nonsense",),
    ],
)
async def test_wrong_arguments(arguments: tuple[str, ...]):
    async with process(*arguments) as router:
        assert await router.exit() == ExitCode.USAGE
        assert arguments[0] in router.log


async def test_an_address_that_is_not_here():
    async with process("--host", "192.0.2.1") as router:
        assert await router.exit() == ExitCode.FAILURE
        assert "192.0.2.1" in router.log
        assert router.log.count("\n") == 1


async def test_the_token_comes_from_its_file(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("secret\n")
    async with engine() as mixed, ready(env={"PDCTL_TOKEN_FILE": str(file)}) as router:
        assert (await router.register("mixed", mixed)).status_code == 401
        assert (await router.register("mixed", mixed, "secret")).status_code == 200


@pytest.mark.parametrize("content", [None, ""])
async def test_a_token_that_cannot_be_read(tmp_path: Path, content: str | None):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    async with process(env={"PDCTL_TOKEN_FILE": str(file)}) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert re.fullmatch(r".* ERROR PDCTL_TOKEN_FILE: .*\n", router.log)


async def test_debug_logs_each_request():
    async with engine() as mixed, ready("--debug") as router:
        await router.register("mixed", mixed)
        async with router.http() as http:
            response = await http.post(CHAT, json=PROMPT)
        await router.wait_for_log(f"request {response.headers['x-request-id']}: {mixed.key}: 200 in ")
