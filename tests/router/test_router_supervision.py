"""When the supervisor gives a worker up, or the whole router: it runs in this process, with shorter times."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
import pytest
from router_mocks import CHAT, LIMIT, PROMPT, MockEngine, engine, until
from router_processes import ready

from pdctl.errors import ExitCode, PdctlError, ProcessDiedError, StepTimeoutError
from pdctl.router.listener import bind
from pdctl.router.settings import Settings
from pdctl.router.workers import bus, supervisor
from pdctl.router.workers.supervisor import Supervisor


def free_port() -> int:
    with bind("127.0.0.1", 0) as sock:
        return sock.getsockname()[1]


@asynccontextmanager
async def supervised(**settings: object) -> AsyncIterator[tuple[Supervisor, httpx.AsyncClient]]:
    """A supervisor in this process, and workers that listen."""
    port = free_port()
    one = Supervisor(Settings(port=port, workers=2, drain=0.0, **settings), [])  # type: ignore[arg-type]
    running = asyncio.create_task(one.run())
    try:
        await until(lambda: running.done() or all(worker.ready for worker in one._workers), "the workers")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT, verify=False) as http:
            yield one, http
    finally:
        one._told_to_stop()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(running)


async def register(http: httpx.AsyncClient, mock: MockEngine, **fields: object) -> None:
    payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": mock.port} | fields
    assert (await http.post("/register", json=payload)).status_code == 200


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run this code where a worker should be."""
    monkeypatch.setattr(Supervisor, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", code]))


async def test_workers_that_die_at_once_end_the_router(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "_PAUSE", 0.0)
    instead(monkeypatch, "import os; os._exit(3)")
    with pytest.raises(ProcessDiedError) as caught:
        await Supervisor(Settings(workers=2), []).run()
    assert "of the router has died 5 times within 10 s of its start, now exit code 3" in str(caught.value)
    assert caught.value.exit_code == ExitCode.PROCESS_DIED


async def test_a_worker_that_is_killed_again_and_again_ends_the_router():
    async with ready("--workers", "2") as router:
        dead = 0
        for _ in range(5):
            worker = await router.worker(0, other_than=dead)
            dead = worker.pid
            worker.kill()
        assert await router.exit() == ExitCode.PROCESS_DIED
        assert router.log.count("ERROR worker 0 has died (SIGKILL): starting another\n") == 4
        assert "ERROR worker 0 of the router has died 5 times within 10 s" in router.log.splitlines()[-1]
        assert "worker 1: stopping" in router.log, "the others are not left alone"


async def test_a_worker_that_lived_for_long_may_die_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "_SHORT_LIFE", 0.0)
    monkeypatch.setattr(supervisor, "_SHORT_LIVES", 1)
    async with supervised() as (one, http):
        for _ in range(2):
            process = one._workers[0].process
            assert process is not None
            process.kill()
            await until(lambda process=process: one._workers[0].process is not process, "another worker")
        assert (await http.get("/health/live")).status_code == 200


async def test_workers_that_do_not_listen_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "_START", 0.1)
    monkeypatch.setattr(supervisor, "_LAST_WORDS", 0.0)
    instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(StepTimeoutError, match=r"waited 0.1 s for the router's workers to listen: 0, 1 did not"):
        await Supervisor(Settings(workers=2, drain=0.0), []).run()


async def test_a_certificate_that_cannot_be_used_is_said_once():
    with pytest.raises(PdctlError, match="--ssl-certfile: cannot read none") as caught:
        await Supervisor(Settings(workers=2, certificate="none.pem", private_key="none.pem"), []).run()
    assert caught.value.exit_code == ExitCode.FAILURE


async def test_a_worker_that_does_not_answer_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(supervisor, "_PING", 0.2)
    monkeypatch.setattr(supervisor, "_SILENCES", 8)
    async with engine() as mixed, supervised() as (one, http):
        await register(http, mixed)
        process = one._workers[1].process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda: one._workers[1].process is not process, "another worker")
        assert "worker 1 has not answered for 1.6 s: killing it" in caplog.text
        assert "worker 0 has not answered" not in caplog.text
        await until(lambda: one._workers[1].joined, "the new one")
        assert (await http.post(CHAT, json=PROMPT)).status_code == 200


async def test_a_worker_that_does_not_read_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(bus, "MAX_UNREAD", 100_000)
    async with engine() as mixed, supervised() as (one, http):
        process, other = one._workers[1].process, one._workers[0].process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        async with one_that_answers(http.base_url) as client:
            while one._workers[1].process is process:
                await register(client, mixed, connected_decodes=["x" * 1000] * 200)
        assert "worker 1: it has left 100000 bytes unread: killing it" in caplog.text
        assert one._workers[0].process is other


@asynccontextmanager
async def one_that_answers(url: httpx.URL) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a connection to the worker that is not stopped."""
    async with AsyncExitStack() as stack:
        while True:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=0.3, verify=False))
            with suppress(httpx.TimeoutException):
                await client.get("/health/live")
                break
        client.timeout = LIMIT
        yield client
