"""Requests that wait, because every engine has as many as it may have: in order, for a while, and not too many."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from router_mocks import ANSWER, PROMPT, MockEngine, Running, Turn, engine, hold, message, quick, running, until
from router_protocol_mocks import ask

from pdctl.router.requests.admission import Admission

# The queue alone.


@dataclass(eq=False)
class Request:
    served: list[str]
    name: str
    wait_until: float = float("inf")
    streaming: bool = False
    admitted: bool = False
    tries: int = 0
    given_up: bool = False

    def try_again(self) -> bool:
        self.tries += 1
        if self.admitted:
            self.served.append(self.name)
        return self.admitted

    def waited_too_long(self) -> None:
        self.given_up = True


@dataclass
class Queue:
    admission: Admission
    served: list[str] = field(default_factory=list)

    def add(self, model: str, name: str, **fields: Any) -> Request:
        request = Request(self.served, name, **fields)
        assert self.admission.enqueue(model, request)
        return request


@asynccontextmanager
async def queue(size: int = 3) -> AsyncIterator[Queue]:
    admission = Admission(size)
    yield Queue(admission)
    admission.close()


async def test_first_come_first_served():
    async with queue() as q:
        a, b, c = (q.add("m", name) for name in "abc")
        b.admitted = c.admitted = True
        await until(lambda: a.tries > 2, "some looks")
        assert q.served == [], "nobody overtakes"
        a.admitted = True
        await until(lambda: len(q.served) == 3, "all to be served")
        assert q.served == ["a", "b", "c"]
        assert q.admission.depths == {}


async def test_each_model_has_a_queue_of_its_own():
    async with queue(1) as q:
        a, b = q.add("m", "a"), q.add("n", "b", admitted=True)
        await until(lambda: q.served, "the other model's request")
        assert (q.served, q.admission.depths) == (["b"], {"m": 1})
        assert not q.admission.enqueue("m", b), "it is full"
        assert q.admission.enqueue("n", a)


async def test_who_has_waited_too_long_is_given_up_wherever_it_stands():
    async with queue() as q:
        first, late, last = q.add("m", "a"), q.add("m", "b", wait_until=0.0), q.add("m", "c")
        await until(lambda: late.given_up, "the late one")
        assert (late.tries, first.given_up, last.given_up, q.admission.depths) == (0, False, False, {"m": 2})


async def test_who_leaves_keeps_nobody_waiting():
    async with queue() as q:
        a, b = q.add("m", "a"), q.add("m", "b", admitted=True)
        q.admission.leave("m", a)
        q.admission.leave("m", a)
        q.admission.leave("n", a)
        await until(lambda: q.served == ["b"], "the next one")
        q.admission.leave("m", b)


async def test_a_stream_that_waits_for_any_engine_comes_first_and_keeps_nobody_waiting():
    """It may wait for an engine to come up, while others wait for room only."""
    async with queue(size=2) as q:
        q.add("m", "a", admitted=False)
        stream = q.add("m", "stream", streaming=True)
        other = q.add("n", "stream of n", streaming=True)
        q.add("n", "b", admitted=True)
        await until(lambda: q.served == ["b"], "the request behind the stream")
        assert other.tries > 0
        stream.admitted = other.admitted = True
        await until(lambda: len(q.served) == 3, "the streams")
        assert q.admission.depths == {"m": 1}


async def test_a_newcomer_waits_behind_those_who_wait_for_room():
    async with queue() as q:
        assert not q.admission.has_line("m")
        a = q.add("m", "a", streaming=True)
        assert not q.admission.has_line("m"), "a stream is no line"
        b = q.add("m", "b")
        assert q.admission.has_line("m")
        assert not q.admission.has_line("n")
        q.admission.leave("m", a)
        q.admission.leave("m", b)
        assert not q.admission.has_line("m")


# In a router.


@dataclass
class Full:
    """A router with one engine that takes one request at a time, and has it."""

    at: Running
    mixed: MockEngine
    turn: Turn
    first: asyncio.Task[httpx.Response]

    def post(self, name: str, model: str = "m") -> "asyncio.Task[httpx.Response]":
        return asyncio.create_task(self.at.post(PROMPT | {"user": name, "model": model}))

    async def waiting(self, number: int) -> None:
        await until(lambda: sum(self.at.router.admission.depths.values()) == number, f"{number} to wait")


@asynccontextmanager
async def full(**settings: Any) -> AsyncIterator[Full]:
    async with engine(hold) as mixed, running(engine_requests=1, **settings) as at:
        await at.admit("mixed", mixed)
        first = asyncio.create_task(at.post(PROMPT | {"user": "first"}))
        turn = await mixed.turn()
        yield Full(at, mixed, turn, first)
        first.cancel()


async def serve(turn: Turn) -> str:
    """Answer, and free the engine's connection for the next."""
    await turn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
    return turn.json["user"]


async def test_requests_are_served_in_their_order_when_there_is_room():
    async with full() as f:
        tasks = []
        for number, name in enumerate("abc", 1):
            tasks.append(f.post(name))
            await f.waiting(number)
        assert f.mixed.turns.empty()
        assert (await f.at.http.get("/metrics")).text.count('pdctl_router_queue_depth{model="m"} 3') == 1
        await serve(f.turn)
        order = [await serve(await f.mixed.turn()) for _ in range(3)]
        assert order == ["a", "b", "c"]
        assert [(await task).status_code for task in (f.first, *tasks)] == [200] * 4
        await f.at.idle()
        assert f.at.metrics.queue.total > 0


async def test_a_client_that_comes_back_at_once_does_not_overtake():
    """Else those who are being served would be served for ever, and those who wait never."""
    async with full() as f:
        client = await ask(f.at, PROMPT | {"user": "again"})
        await f.waiting(1)
        others = [f.post("b"), f.post("c")]
        await f.waiting(3)
        await serve(f.turn)
        turn = await f.mixed.turn()
        assert turn.json["user"] == "again"
        data = turn.body
        client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data))
        client.writer.write(data)  # the next request is there before the answer
        await serve(turn)
        assert [await serve(await f.mixed.turn()) for _ in range(3)] == ["b", "c", "again"]
        for task in others:
            assert (await task).status_code == 200


async def test_a_full_queue_refuses():
    async with full(queue_size=1) as f:
        waiting = f.post("a")
        await f.waiting(1)
        response = await f.at.post()
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        assert message(response) == "every engine is full, and so is the queue"
        assert int(response.headers["retry-after"]) > 0
        assert f.at.metrics.queue_rejected["m", "full"] == 1
        await serve(f.turn)
        await serve(await f.mixed.turn())
        assert (await waiting).status_code == 200
        await f.at.idle()


async def test_a_queue_of_none_refuses_at_once():
    async with full(queue_size=0) as f:
        assert (await f.at.post()).status_code == 429


async def test_waiting_has_an_end():
    async with full(queue_timeout=0.05) as f:
        response = await f.at.post()
        assert response.status_code == 429
        assert message(response) == "every engine is full, and none became free in time"
        assert int(response.headers["retry-after"]) > 0
        assert f.at.metrics.queue_rejected["m", "timeout"] == 1
        assert f.at.router.admission.depths == {}
        await serve(f.turn)
        await f.first
        await f.at.idle()


async def test_a_client_that_leaves_while_it_waits_leaves_its_place():
    async with full() as f:
        client = await ask(f.at, PROMPT | {"user": "gone"})
        await f.waiting(1)
        task = f.post("stays")
        await f.waiting(2)
        client.leave()
        await f.waiting(1)
        await serve(f.turn)
        assert await serve(await f.mixed.turn()) == "stays"
        assert (await task).status_code == 200
        await f.at.idle()
        assert f.mixed.turns.empty()
        assert f.at.metrics.requests[b"/v1/chat/completions", "m", 499] == 1
        assert not f.at.metrics.queue_rejected, "it was not given up once more"


async def test_the_requests_own_time_runs_on_in_the_queue():
    async with full(request_timeout=60) as f:
        task = asyncio.create_task(f.at.post(headers={"X-Request-Id": "mine"}))
        await f.waiting(1)
        f.at.router.in_flight["mine"].check(f.at.router.now() + 60)
        response = await task
        assert response.status_code == 504
        assert message(response) == "the queue: waited 60 s for an answer"
        assert f.at.router.admission.depths == {}
        assert not f.at.metrics.queue_rejected


async def test_a_new_engine_serves_those_who_wait():
    async with full() as f, engine() as other:
        task = f.post("a")
        await f.waiting(1)
        await f.at.admit("mixed", other)
        assert (await task).headers["x-router-decode-url"] == other.url


async def test_when_the_last_engine_goes_those_who_wait_are_told():
    async with full() as f:
        task = f.post("a")
        await f.waiting(1)
        await f.at.http.post(f"/instances/{f.mixed.key}/drain")
        response = await task
        assert (response.status_code, message(response)) == (503, "every mixed instance is draining")
        assert int(response.headers["retry-after"]) > 0


async def test_one_models_queue_is_not_anothers():
    async with full(queue_size=1) as f, engine() as other:
        await f.at.admit("mixed", other, model="n")
        task = f.post("a")
        await f.waiting(1)
        assert (await f.at.post(PROMPT | {"model": "n"})).status_code == 200
        assert (await f.at.post()).status_code == 429
        await serve(f.turn)
        await serve(await f.mixed.turn())
        assert (await task).status_code == 200


async def test_a_request_that_waits_can_be_aborted():
    async with full() as f:
        task = asyncio.create_task(f.at.post(headers={"X-Request-Id": "mine"}))
        await f.waiting(1)
        abort = asyncio.create_task(f.at.http.post("/v1/abort_requests", json={"req_ids": ["mine"]}))
        response = await task
        assert (response.status_code, response.json()["error"]["code"]) == (499, "aborted")
        assert f.at.router.admission.depths == {}
        await (await f.mixed.turn()).answer({})
        assert (await abort).status_code == 200


async def test_a_retry_that_finds_every_engine_full_waits_and_can_be_aborted():
    async def fail(turn: Turn) -> None:
        await turn.answer({}, 503)

    async with full() as f, engine(fail) as failing:
        await f.at.admit("mixed", failing)
        task = asyncio.create_task(f.at.post(headers={"X-Request-Id": "mine"}))
        await f.waiting(1)
        assert failing.turns.qsize() == 1
        abort = asyncio.create_task(f.at.http.post("/v1/abort_requests", json={"req_ids": ["mine"]}))
        assert (await task).status_code == 499
        abort.cancel()


async def test_prefills_have_room_too():
    async with engine(hold) as prefill, engine() as decode, running(splitwise=True, engine_requests=1) as at:
        await at.admit("prefill", prefill)
        await at.admit("decode", decode)
        first = asyncio.create_task(at.post())
        turn = await prefill.turn()
        assert (await first).status_code == 200, "the decode has answered"
        second = asyncio.create_task(at.post())
        await until(lambda: at.router.admission.depths == {"m": 1}, "the second to wait for the prefill")
        await turn.answer({})
        assert (await second).json() == ANSWER


async def test_stopping_tells_those_who_wait():
    async with full(drain=0.05, limits=quick()) as f:
        task = f.post("a")
        await f.waiting(1)
        await f.at.router.drain()
        response = await task
        assert (response.status_code, message(response)) == (503, "the router is stopping")
        assert f.at.router.admission.depths == {}
