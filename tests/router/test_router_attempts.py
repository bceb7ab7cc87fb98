"""Failures that cost a client nothing: its request is sent to another pair."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from router_mocks import ANSWER, MockEngine, Split, Turn, drop, engine, hold, message, quick, split, until

# Engines that cannot be reached get no more requests.


@pytest.mark.parametrize("dead_role", ["prefill", "decode"])
async def test_a_dead_engine_costs_one_retry_and_then_nothing(dead_role: str):
    async with split() as pair, engine() as dead:
        await pair.at.admit(dead_role, dead)
        await dead.stop()
        await until(
            lambda: not pair.at.router.registry.instances[dead.key].pool.idle, "the dead connection to be noticed"
        )
        responses = [await pair.at.post() for _ in range(4)]
        assert [response.status_code for response in responses] == [200] * 4
        assert pair.at.metrics.retries.value == 1
        assert dead.key not in str((await pair.at.http.get("/registered")).json())
        other = pair.prefill if dead_role == "decode" else pair.decode
        ids = [(await other.turn()).json["request_id"] for _ in range(5)]
        retried = [request_id for request_id in ids if request_id.endswith("-retry1")]
        assert len(retried) == 1, "the second attempt has an id of its own at the engine"
        assert retried[0].removesuffix("-retry1") in [response.headers["x-request-id"] for response in responses]
        await pair.at.idle()


async def test_an_abort_names_the_second_attempt_as_its_engines_do():
    async with split(on_prefill=hold, on_decode=hold) as pair, engine() as dead:
        await pair.at.admit("decode", dead)
        await dead.stop()
        pool = pair.at.router.registry.instances[dead.key].pool
        await until(lambda: not pool.idle, "the dead connection to be noticed")
        requests = [asyncio.create_task(pair.at.post(headers={"X-Request-Id": name})) for name in "ab"]
        await until(lambda: pair.at.metrics.retries.value, "the second attempt")
        turns = {turn.json["request_id"]: turn for turn in [await pair.decode.turn() for _ in requests]}
        [retried] = [request_id for request_id in turns if request_id.endswith("-retry1")]
        abort = asyncio.create_task(
            pair.at.http.post("/v1/abort_requests", json={"req_ids": [retried.removesuffix("-retry1")]})
        )
        assert retried in (await pair.decode.turn()).json["req_ids"]
        for task in (*requests, abort):
            task.cancel()
        await asyncio.wait((*requests, abort))


async def test_without_another_engine_the_reason_is_given():
    async with split(on_prefill=hold) as pair:
        await pair.decode.stop()
        await until(lambda: not pair.at.router.registry.instances[pair.decode.key].pool.idle, "the end to be noticed")
        response = await pair.at.post()
        assert (response.status_code, message(response)) == (
            502,
            f"decode instance {pair.decode.url}: Connection refused",
        )
        await (await pair.prefill.turn()).peer_left()
        response = await pair.at.post()
        assert response.status_code == 503
        assert message(response) == f"no decode instance answers: {pair.decode.url}: Connection refused"
        await pair.at.idle()


async def test_an_engine_that_comes_back_gets_requests_again():
    async with split() as pair:
        await pair.decode.stop()
        await until(lambda: not pair.at.router.registry.instances[pair.decode.key].pool.idle, "the end to be noticed")
        assert (await pair.at.post()).status_code == 502
        await pair.decode.start()
        await until(lambda: pair.at.router.registry.instances[pair.decode.key].live, "the next health check")
        assert (await pair.at.post()).status_code == 200
        await pair.at.idle()


async def test_an_engine_that_comes_back_need_not_wait_for_the_next_health_check():
    async with split(limits=quick(tick=1000.0)) as pair:
        await pair.decode.stop()
        await until(lambda: not pair.at.router.registry.instances[pair.decode.key].pool.idle, "the end to be noticed")
        assert (await pair.at.post()).status_code == 502
        await pair.decode.start()
        assert (await pair.at.post()).status_code == 503
        await pair.at.admit("decode", pair.decode)
        assert (await pair.at.post()).status_code == 200
        await pair.at.idle()


@pytest.mark.parametrize(("attempts", "status", "retries"), [(2, 502, 1), (3, 200, 2)])
async def test_so_many_attempts_and_no_more(attempts: int, status: int, retries: int):
    async with split(limits=quick(attempts=attempts)) as pair, engine() as second, engine() as third:
        await pair.at.admit("decode", second)
        await pair.at.admit("decode", third)
        instances = pair.at.router.registry.instances
        for mock in (pair.decode, second):
            await mock.stop()
            await until(lambda key=mock.key: not instances[key].pool.idle, "the end to be noticed")
        response = await pair.at.post()
        assert response.status_code == status
        assert pair.at.metrics.retries.value == retries
        if status == 502:
            assert message(response) == f"decode instance {second.url}: Connection refused"
        assert (await pair.at.post()).status_code == 200
        assert pair.at.metrics.retries.value == retries, "the dead ones are known by now"
        await pair.at.idle()


# Answers that another pair may better.


@asynccontextmanager
async def two_of(role: str, bad: Callable[[Turn], Awaitable[None]]) -> AsyncIterator[tuple[Split, MockEngine]]:
    """A pair, and a second engine of a role that does something bad. No decode answers before its prefill has."""
    async with engine(bad) as second:

        async def decode(turn: Turn) -> None:
            if turn.json["disaggregate_info"]["prefill_port"] == second.port:
                await hold(turn)
            await turn.answer(ANSWER)

        async with split(on_decode=decode, limits=quick(stale=0.0)) as pair:
            await pair.at.admit(role, second)
            yield pair, second


def good(pair: Split, role: str) -> MockEngine:
    return pair.prefill if role == "prefill" else pair.decode


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_error_that_another_engine_may_not_have_is_tried_elsewhere(role: str, status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "not now"}}, status)

    async with two_of(role, refuse) as (pair, failing):
        for _ in range(2):  # one of these comes to the failing engine
            response = await pair.at.post()
            assert (response.status_code, response.json()) == (200, ANSWER)
            assert response.headers[f"x-router-{role}-url"] == good(pair, role).url
        assert failing.turns.qsize() >= 1
        assert pair.at.metrics.retries.value == failing.turns.qsize()
        await pair.at.idle()


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_an_error_of_the_only_decode_may_be_its_prefills_fault(status: int):
    """As when a prefill is back at the address of one that the decode remembers: both answer, the KV is lost."""

    async def decode(turn: Turn) -> None:
        if turn.json["disaggregate_info"]["prefill_port"] == lost.port:
            await turn.answer({"error": {"message": "no KV came"}}, status)
        await turn.answer(ANSWER)

    async with engine(hold) as lost, split(on_decode=decode) as pair:
        await pair.at.admit("prefill", lost)
        answers = [await pair.at.post() for _ in range(2)]  # one of these begins at the prefill whose KV is lost
        assert [answer.status_code for answer in answers] == [200, 200]
        assert pair.at.metrics.retries.value >= 1
        assert {answer.headers["x-router-prefill-url"] for answer in answers} == {pair.prefill.url}
        await (await lost.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 501])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_error_that_is_the_requests_own_is_not_tried_elsewhere(role: str, status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "never"}}, status)

    async with two_of(role, refuse) as (pair, _):
        statuses = [(await pair.at.post()).status_code for _ in range(2)]
        assert sorted(statuses) == [200, status]
        assert pair.at.metrics.retries.value == 0
        await pair.at.idle()


async def test_if_every_engine_refuses_the_last_ones_answer_is_the_clients():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": f"no room at {turn.headers['host']}"}}, 429, "Retry-After: 7\r\n")

    async with split(on_prefill=hold, on_decode=refuse) as pair, engine(refuse) as other:
        await pair.at.admit("decode", other)
        response = await pair.at.post()
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        last = response.headers["x-router-decode-url"]
        assert message(response) == f"no room at {last.removeprefix('http://')}"
        assert (pair.decode.turns.qsize(), other.turns.qsize()) == (2, 2), "the one that failed last is avoided"
        for _ in range(4):
            await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_drops_is_followed_by_another(role: str):
    async with two_of(role, drop) as (pair, dropping):
        for _ in range(2):
            response = await pair.at.post()
            assert (response.status_code, response.json()) == (200, ANSWER)
            assert response.headers[f"x-router-{role}-url"] == good(pair, role).url
        assert pair.at.metrics.leg_failures == {(role, "dropped"): dropping.turns.qsize()}
        await pair.at.idle()


async def test_no_attempt_begins_after_the_deadline():
    async with split(on_decode=hold, limits=quick(retry_deadline=0.0)) as pair, engine() as other:
        request = asyncio.create_task(pair.at.post())
        turn = await pair.decode.turn()
        await pair.at.admit("decode", other)
        await turn.answer({"error": {"message": "late"}}, 503)
        response = await request
        assert (response.status_code, message(response)) == (503, "late")
        assert other.turns.empty()
