"""A router of several processes: what one worker is told, all know; each sees what the others assign."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from router_mocks import ANSWER, CHAT, LIMIT, PROMPT, MockEngine, Turn, engine, hold, until
from router_processes import Connections, Process, ready, to_each_worker


@asynccontextmanager
async def two_workers(*arguments: str) -> AsyncIterator[tuple[Process, Connections]]:
    async with ready("--workers", "2", *arguments) as router, to_each_worker(router) as each:
        yield router, each


async def known(http: httpx.AsyncClient) -> dict[str, dict[str, object]]:
    return {entry["id"]: entry for entry in (await http.get("/instances")).json()}


async def load(http: httpx.AsyncClient, mock: MockEngine) -> object:
    return (await known(http))[mock.key]["requests_in_flight"]


async def test_an_engine_that_registers_at_one_is_known_to_all_at_once():
    async with engine() as prefill, engine() as decode, two_workers("--splitwise") as (router, each):
        for role, mock in (("prefill", prefill), ("decode", decode)):
            assert (await router.register(role, mock, model="m")).status_code == 200
            answers = [(await http.get("/registered")).json() for http in each]
            assert answers[0] == answers[1]
            assert [entry["port"] for entry in answers[0][role]] == [mock.port]
        assert [(await http.get("/health")).status_code for http in each] == [200, 200]
        assert [(await http.get("/v1/models")).json()["data"][0]["id"] for http in each] == ["m", "m"]
        for http in each:
            assert (await http.post(CHAT, json=PROMPT)).json() == ANSWER


class HealthyOnce(MockEngine):
    """Once it may, it says a single time that it is healthy: only one worker can find that out by itself."""

    may = False

    @property
    def health_status(self) -> int:
        healthy, self.may = self.may, False
        return 200 if healthy else 503

    @health_status.setter
    def health_status(self, value: int) -> None: ...


async def test_an_engine_that_one_finds_healthy_is_known_to_all_before_it_is_listed():
    mixed = HealthyOnce()
    await mixed.start()
    async with two_workers("--mixed", mixed.url) as (_, each):
        mixed.may = True
        async with asyncio.timeout(LIMIT):
            lists: list[object] = []
            while not any(lists):
                lists = [(await http.get("/registered")).json()["mixed"] for http in each]
        assert [(await known(http))[mixed.key]["state"] for http in each] == ["ready", "ready"]
    await mixed.stop()


async def test_what_is_drained_and_removed_at_one_is_so_at_all():
    async with engine() as a, engine() as b, two_workers() as (router, each):
        for mock in (a, b):
            await router.register("mixed", mock)
        one, other = each
        await one.post(f"/instances/{a.key}/drain")
        assert (await known(other))[a.key]["state"] == "draining"
        for http in (one, other, one, other):
            assert (await http.post(CHAT, json=PROMPT)).status_code == 200
        assert (a.turns.qsize(), b.turns.qsize()) == (0, 4)
        await other.post(f"/instances/{a.key}/undrain")
        assert (await known(one))[a.key]["state"] == "ready"
        assert (await other.delete(f"/instances/{a.key}")).status_code == 200
        assert list(await known(one)) == list(await known(other)) == [b.key]


async def test_a_request_at_one_counts_in_the_choice_of_the_other():
    async with engine(hold) as a, engine(hold) as b, two_workers() as (router, each):
        for mock in (a, b):
            await router.register("mixed", mock)
        requests = []
        for number in range(1, 4):
            for http in each:  # one after the other: choices at the same instant do not see each other;
                # the first at each worker for sure, the others on new connections
                requests.append(asyncio.create_task(http.post(CHAT, json=PROMPT)))
                sent = len(requests)
                await until(lambda sent=sent: a.turns.qsize() + b.turns.qsize() == sent, f"request {sent}")
            assert (a.turns.qsize(), b.turns.qsize()) == (number, number)
            for http in each:
                assert (await load(http, a), await load(http, b)) == (number, number)
        for mock in (a, b):
            for _ in range(3):
                await (await mock.turn()).answer(ANSWER)
        assert [(await request).status_code for request in requests] == [200] * 6
        for http in each:
            assert (await load(http, a), await load(http, b)) == (0, 0)


async def test_requests_at_every_worker_are_aborted_and_not_tried_again():
    held: list[Turn] = []

    async def abortable(turn: Turn) -> None:
        if turn.target != "/v1/abort_requests":
            held.append(turn)
            await asyncio.Event().wait()
        for other in held:
            await other.answer({"error": {"message": "aborted"}}, 503)  # else a reason to try again
        await turn.answer({})

    async with engine(abortable) as mixed, engine() as spare, two_workers() as (router, each):
        await router.register("mixed", mixed)
        one, other = each
        requests = [asyncio.create_task(http.post(CHAT, json=PROMPT)) for http in (one, other)]
        await until(lambda: len(held) == 2, "both requests")
        await router.register("mixed", spare)
        answer = await one.post("/v1/abort_requests", json={"abort_all": True})
        assert answer.json()["results"][mixed.url] == "answered 200"
        assert [(await request).status_code for request in requests] == [503, 503]
        assert [turn.target for turn in spare.turns._queue] == ["/v1/abort_requests"]  # type: ignore[attr-defined]


async def test_the_metrics_of_any_worker_are_those_of_all():
    async with engine() as mixed, two_workers() as (router, each):
        await router.register("mixed", mixed, model="m")
        one, other = each
        for http, count in ((one, 3), (other, 2)):
            for _ in range(count):
                await http.post(CHAT, json=PROMPT)
        for http in each:
            assert await figure(http, 'requests_total{route="/v1/chat/completions",model="m",status="200"}') == 5
            assert await figure(http, f'instance_requests_total{{role="mixed",instance="{mixed.key}"}}') == 5
            assert await figure(http, f'instance_up{{role="mixed",instance="{mixed.key}"}}') == 1
            assert await figure(http, "client_connections") >= 2
            assert await figure(http, "workers") == await figure(http, "workers_reporting") == 2


async def figure(http: httpx.AsyncClient, name: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"pdctl_router_{name} ")]
    return float(value)


async def test_figures_without_a_worker_that_does_not_answer_and_after_its_death():
    async with engine() as mixed, two_workers() as (router, each):
        await router.register("mixed", mixed, model="m")
        (_, one), (other_pid, other) = each.clients.items()
        sent = 'requests_total{route="/v1/chat/completions",model="m",status="200"}'
        for http in (one, other):
            await http.post(CHAT, json=PROMPT)
        assert await figure(one, sent) == 2
        os.kill(other_pid, signal.SIGSTOP)
        assert await figure(one, "workers_reporting") == 1
        assert await figure(one, sent) == 2, "what it told last still counts"
        os.kill(other_pid, signal.SIGKILL)
        await router.wait_for_log("has died (SIGKILL)")
        await one.post(CHAT, json=PROMPT)
        assert await figure(one, sent) == 3, "a counter never goes down"


async def test_they_share_the_access_log_and_reopen_it(tmp_path: Path):
    log, moved = tmp_path / "access.jsonl", tmp_path / "access.jsonl.1"
    async with engine() as mixed, two_workers("--access-log", str(log)) as (router, each):
        await router.register("mixed", mixed, model="m")
        for number in range(20):
            for worker, http in enumerate(each):
                await http.post(CHAT, json=PROMPT, headers={"X-Request-Id": f"{worker}-{number}"})
        await until(lambda: len(lines(log)) == 40, "a line for each request")
        assert {line["id"] for line in lines(log)} == {f"{w}-{n}" for w in range(2) for n in range(20)}
        assert {(line["status"], line["decode"], line["model"]) for line in lines(log)} == {(200, mixed.key, "m")}
        log.rename(moved)
        router.kill(signal.SIGHUP)
        ids = set[object]()
        while len(ids) < 2:  # until each has the new file; lines are held back for a moment
            for worker, http in enumerate(each):
                await http.post(CHAT, json=PROMPT, headers={"X-Request-Id": f"{worker}"})
            ids = {line["id"] for line in lines(log)} if log.exists() else set()
        assert router.process.returncode is None


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_log_lines_tell_the_worker_and_heartbeats_are_not_logged():
    async with engine() as mixed, two_workers() as (router, _):
        for _ in range(10):
            assert (await router.register("mixed", mixed, model="m")).status_code == 200
        router.kill()
        assert await router.exit() == 0
        for number in range(2):
            assert f"INFO worker {number}: registered: mixed at {mixed.url} (m)\n" in router.log
        assert router.log.count("registered") == 2


async def test_the_agent_is_told_once_when_all_listen():
    async with ready("--workers", "3") as router:
        assert len(router.workers()) == 3
        listening = [
            worker for worker in router.workers() for c in worker.net_connections("tcp") if c.status == "LISTEN"
        ]
        assert len(listening) == 3
        router.kill()
        assert await router.exit() == 0
        async with asyncio.timeout(LIMIT):
            assert await router.notices.read() == b"", "it said no more"
