"""The first process of a router with several workers: it replaces what dies, and ends all of them."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from router_mocks import ANSWER, CHAT, LIMIT, PROMPT, MockEngine, engine, hold, until
from router_processes import Process, listening, process, ready, to_each_worker

from pdctl.errors import ExitCode


async def test_a_dead_worker_is_replaced_by_one_that_knows_everything():
    async with (
        engine(hold) as a,
        engine() as drained,
        ready("--workers", "2") as router,
        to_each_worker(router) as each,
    ):
        await router.register("mixed", a, model="m")
        (dead, one), (_, other) = each.clients.items()
        request = asyncio.create_task(one.post(CHAT, json=PROMPT))
        await a.turn()
        await router.register("mixed", drained, model="m")
        await other.post(f"/instances/{drained.key}/drain")
        assert (await known(other))[a.key]["requests_in_flight"] == 1
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            await request
        await router.wait_for_log("has died (SIGKILL)")
        assert (await known(other))[a.key]["requests_in_flight"] == 0, "its load is taken back"
        unready = await ask_until_replaced(router, dead)
        assert unready == [], "a worker listened before it knew the engines"
        async with to_each_worker(router) as both:
            assert dead not in both.clients
            for http in both:
                states = {key: entry["state"] for key, entry in (await known(http)).items()}
                assert states == {a.key: "ready", drained.key: "draining"}


async def known(http: httpx.AsyncClient) -> dict[str, dict[str, object]]:
    return {entry["id"]: entry for entry in (await http.get("/instances")).json()}


async def ask_until_replaced(router: Process, dead: int) -> list[int]:
    """Ask for /health on new connections until two workers listen, and a while longer; the answers but 200."""
    unready, more = [], 30
    while more:
        more -= len(listening(router)) == 2
        async with router.http() as http:
            status = (await http.get("/health")).status_code
        if status != 200:
            unready.append(status)
    return unready


async def test_a_new_worker_has_asked_the_fixed_engines_before_it_listens():
    async with engine() as prefill, engine() as decode:
        fixed = ("--prefill", prefill.url, "--decode", decode.url)
        async with ready("--workers", "2", *fixed) as router:
            async with to_each_worker(router) as each:
                assert [(await http.get("/health")).status_code for http in each] == [200, 200]
            dead = router.workers()[0].pid
            os.kill(dead, signal.SIGKILL)
            await router.wait_for_log("has died (SIGKILL)")
            assert await ask_until_replaced(router, dead) == []


async def test_the_others_go_on_serving():
    async with engine() as mixed, ready("--workers", "2") as router, to_each_worker(router) as each:
        await router.register("mixed", mixed)
        (dead, _), (_, other) = each.clients.items()
        os.kill(dead, signal.SIGKILL)
        while len(listening(router)) < 2:
            assert (await other.post(CHAT, json=PROMPT)).status_code == 200


async def test_a_worker_that_ends_on_its_own_signal_lets_its_requests_end():
    async with engine(hold) as mixed, ready("--workers", "2") as router, to_each_worker(router) as each:
        await router.register("mixed", mixed)
        (pid, one), _ = each.clients.items()
        request = asyncio.create_task(one.post(CHAT, json=PROMPT))
        turn = await mixed.turn()
        for _ in range(3):  # a worker may get the same word from several
            os.kill(pid, signal.SIGTERM)
        await router.wait_for_log("stopping: 1 requests in flight")
        await turn.answer(ANSWER)
        assert (await request).status_code == 200
        await router.wait_for_log("has died (exit code 0): starting another")


@asynccontextmanager
async def held(router: Process) -> AsyncIterator[tuple[list[asyncio.Task[httpx.Response]], MockEngine]]:
    """A request in flight at each worker."""
    async with engine(hold) as mixed, to_each_worker(router) as each:
        assert (await router.register("mixed", mixed)).status_code == 200
        requests = [asyncio.create_task(http.post(CHAT, json=PROMPT)) for http in each]
        await until(lambda: mixed.turns.qsize() == len(requests), "the requests at the engine")
        yield requests, mixed


async def stopped(router: Process) -> None:
    """Wait until every worker takes no more requests."""
    for number in range(2):
        await router.wait_for_log(f"worker {number}: stopping: 1 requests in flight")


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
async def test_all_let_their_requests_end(number: int, *, to_group: bool):
    """An agent sends SIGTERM, and a terminal SIGINT, to every process of the group."""
    async with ready("--workers", "2", "--drain-secs", "30", session=True) as router, held(router) as (requests, mixed):
        if to_group:
            os.killpg(router.process.pid, number)
        else:
            router.kill(number)
        await stopped(router)
        await until(lambda: not is_open(router.port), "the port's end")
        for _ in requests:
            await (await mixed.turn()).answer(ANSWER)
        assert [(await request).status_code for request in requests] == [200, 200]
        assert await router.exit() == 0
        assert "died" not in router.log


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("to_group", [False, True])
async def test_a_second_signal_cuts_all(*, to_group: bool):
    async with ready("--workers", "2", "--drain-secs", "60", session=True) as router, held(router) as (requests, _):
        for _ in range(2):
            if to_group:
                os.killpg(router.process.pid, signal.SIGINT)
            else:
                router.kill()
            await stopped(router)
        assert await router.exit() == 0
        assert router.log.count("stopping at once: 1 requests are cut") == 2
        for request in requests:
            with pytest.raises(httpx.RemoteProtocolError):
                await request


async def test_requests_that_do_not_end_in_time_are_cut_at_all():
    async with ready("--workers", "2", "--drain-secs", "0.2") as router, held(router) as (requests, _):
        router.kill()
        assert [(await request).status_code for request in requests] == [503, 503]
        assert await router.exit() == 0


async def test_workers_end_with_their_supervisor():
    async with ready("--workers", "2", "--drain-secs", "0.2") as router:
        workers = router.workers()
        router.kill(signal.SIGKILL)
        await until(lambda: not any(is_alive(worker) for worker in workers), "the workers' end")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", router.port))
            sock.listen()


def is_alive(one: psutil.Process) -> bool:
    try:
        return one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_hangup_without_an_access_log_ends_it_as_any_process():
    async with ready("--workers", "2", "--drain-secs", "0.2") as router:
        workers = router.workers()
        router.kill(signal.SIGHUP)
        assert await router.exit() == -signal.SIGHUP
        await until(lambda: not any(is_alive(worker) for worker in workers), "the workers' end")


async def test_a_port_that_another_router_shares_is_taken():
    async with (
        ready("--workers", "2") as router,
        process("--workers", "2", "--port", str(router.port)) as second,
        process("--port", str(router.port)) as alone,
    ):
        for other in (second, alone):
            assert await other.exit() == ExitCode.PLAN
            assert other.log.count("\n") == 1
            assert f"port {router.port} on 127.0.0.1 is taken by " in other.log
            assert f"(pid {router.process.pid})" in other.log, "the one to end, not its worker"


async def test_a_port_that_is_kept_but_not_listened_on_is_taken():
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        async with process("--workers", "2", "--port", str(port)) as router:
            assert await router.exit() == ExitCode.PLAN
            assert f"port {port} on 127.0.0.1 is taken" in router.log


async def test_what_keeps_workers_from_starting_is_said_once(tmp_path: Path):
    missing = str(tmp_path / "none" / "access.log")
    async with process("--workers", "3", "--access-log", missing) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert router.log.count("\n") == 1
        assert f"access log {missing}: cannot be opened: No such file or directory" in router.log


async def test_an_environment_that_is_not_a_workers():
    async with process(env={"PDCTL_ROUTER_WORKER": "1"}) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert router.log == "PDCTL_ROUTER_WORKER is set for a router's own processes only: unset it\n"


async def test_the_exit_waits_for_the_last_worker():
    async with ready("--workers", "2") as router:
        workers = router.workers()
        router.kill()
        async with asyncio.timeout(LIMIT):
            assert await router.process.wait() == 0
        assert not any(worker.is_running() and is_alive(worker) for worker in workers)
