"""Every way in which a request can fail, and what its client and its engines see of it."""

import asyncio

import pytest
from router_mocks import (
    ANSWER,
    Turn,
    drop,
    engine,
    hold,
    message,
    quick,
    running,
    split,
    until,
)

# No engine.


async def test_missing_roles_are_named():
    async with engine() as prefill, engine() as decode, running(splitwise=True) as at:
        response = await at.post(headers={"X-Request-Id": "mine"})
        assert (response.status_code, message(response)) == (503, "no prefill instance is registered")
        assert (response.headers["retry-after"], response.headers["x-request-id"]) == ("5", "mine")
        await at.admit("prefill", prefill)
        assert message(await at.post()) == "no decode instance is registered"
        await at.admit("decode", decode)
        assert (await at.post()).status_code == 200


async def test_a_missing_mixed_engine():
    async with running() as at:
        assert message(await at.post()) == "no mixed instance is registered"


async def test_paused_engines_get_nothing_new():
    async with split() as pair:
        await pair.at.admit("decode", pair.decode, is_paused=True)
        response = await pair.at.post()
        assert (response.status_code, message(response)) == (503, "every decode instance is paused")
        await pair.at.admit("decode", pair.decode, is_paused=False)
        assert (await pair.at.post()).status_code == 200


async def test_engines_that_do_not_fit():
    async with split() as pair:
        await pair.at.admit("decode", pair.decode, tp_size=4)
        response = await pair.at.post()
        assert response.status_code == 400
        assert "tp_size 4" in message(response)
        health = await pair.at.http.get("/health")
        assert (health.status_code, message(health)) == (503, message(response)), "no request can be served"


async def test_a_prefill_without_a_partner_is_passed_over():
    async with engine() as alone, split() as pair:
        await pair.at.admit("prefill", alone, transfer_protocol=["rdma"])
        for _ in range(4):
            response = await pair.at.post()
            assert response.headers["x-router-prefill-url"] == pair.prefill.url


async def test_an_unforeseen_error_is_answered_and_its_connection_serves_on(monkeypatch: pytest.MonkeyPatch):
    def fail(pin: object) -> None:
        raise RuntimeError("unforeseen")

    async with split() as pair:
        with monkeypatch.context() as context:
            context.setattr(pair.at.router.selector, "choose", fail)
            response = await pair.at.post()
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert "unforeseen" not in response.text
        assert (await pair.at.post()).status_code == 200
        assert len(pair.at.router.server.clients) == 1
        await pair.at.idle()


# Failures before the decode's head.


async def test_a_prefill_that_refuses_ends_the_decode_at_once_and_its_reason_reaches_the_client():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long"}}, 400)

    async with split(on_prefill=refuse, on_decode=hold) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.json()) == (400, {"error": {"message": "too long"}})
        assert response.headers["x-router-prefill-url"] == pair.prefill.url
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


async def test_the_decode_is_left_at_the_head_of_the_prefills_refusal():
    async def slow_refusal(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\n")
        await hold(turn)

    async with split(on_prefill=slow_refusal, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        await (await pair.decode.turn()).peer_left()
        await (await pair.prefill.turn()).send(b"oops")
        response = await request
        assert (response.status_code, response.content) == (500, b"oops")


async def test_a_refusal_without_a_body_is_explained():
    async def refuse(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")

    async with split(on_prefill=refuse, on_decode=hold) as pair:
        response = await pair.at.post()
        assert response.status_code == 503
        assert message(response) == f"prefill instance {pair.prefill.url} answered 503"


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"HTTP/1.1 500 X\r\nContent-Length: 10\r\n\r\n{}"],
)
async def test_a_prefill_that_drops_ends_the_decode(answer: bytes):
    async def half(turn: Turn) -> None:
        await turn.send(answer)
        turn.writer.close()

    async with split(on_prefill=half, on_decode=hold) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"prefill instance {pair.prefill.url}: the connection was ")
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


async def test_a_connection_lost_late_was_not_stale_and_its_request_is_not_sent_twice():
    async with split(on_decode=drop, limits=quick(stale=0.0)) as pair:
        assert (await pair.at.post()).status_code == 502
        assert pair.decode.turns.qsize() == 1


async def test_a_decode_that_drops_ends_the_prefill():
    async with split(on_prefill=hold, on_decode=drop) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"decode instance {pair.decode.url}: the connection was ")
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_a_decode_that_refuses_ends_the_prefill():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "no blocks"}}, 429, "Retry-After: 7\r\n")

    async with split(on_prefill=hold, on_decode=refuse) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x00" * 99]
)
async def test_a_decode_that_does_not_speak_http(nonsense: bytes):
    async def babble(turn: Turn) -> None:
        await turn.send(nonsense)

    async with split(on_prefill=hold, on_decode=babble) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response) == f"decode instance {pair.decode.url}: the answer is not valid HTTP"
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_headers_without_end_are_not_collected_for_ever():
    async def flood(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000)

    async with engine(flood) as mixed, running() as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 502


async def test_a_request_that_takes_too_long():
    async with split(on_prefill=hold, on_decode=hold, request_timeout=0.1) as pair:
        response = await pair.at.post()
        assert response.status_code == 504
        engines = f"prefill instance {pair.prefill.url} and decode instance {pair.decode.url}"
        assert message(response) == f"{engines}: waited 0.1 s for an answer"
        assert pair.at.router.metrics.leg_failures == {("prefill", "timeout"): 1, ("decode", "timeout"): 1}
        await (await pair.prefill.turn()).peer_left()
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


# Engines that cannot be reached: another try, and no more requests for them.


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
        assert pair.at.router.metrics.retries.value == 1
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
        await until(lambda: pair.at.router.metrics.retries.value, "the second attempt")
        turns = {turn.json["request_id"]: turn for turn in [await pair.decode.turn() for _ in requests]}
        [retried] = [request_id for request_id in turns if request_id.endswith("-retry1")]
        abort = asyncio.create_task(
            pair.at.http.post("/v1/abort_requests", json={"req_ids": [retried.removesuffix("-retry1")]})
        )
        assert (await pair.decode.turn()).json["req_ids"] == [retried]
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
        assert pair.at.router.metrics.retries.value == retries
        if status == 502:
            assert message(response) == f"decode instance {second.url}: Connection refused"
        assert (await pair.at.post()).status_code == 200
        assert pair.at.router.metrics.retries.value == retries, "the dead ones are known by now"
        await pair.at.idle()


# Answers that another pair may better.


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_error_that_another_engine_may_not_have_is_tried_elsewhere(role: str, status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "not now"}}, status)

    async with engine(refuse) as failing, split() as pair:
        await pair.at.admit("prefill" if role == "prefill" else "decode", failing)
        for _ in range(2):  # one of these comes to the failing engine
            response = await pair.at.post()
            assert (response.status_code, response.json()) == (200, ANSWER)
            assert response.headers[f"x-router-{role}-url"] == (pair.prefill if role == "prefill" else pair.decode).url
        assert failing.turns.qsize() >= 1
        assert pair.at.router.metrics.retries.value == failing.turns.qsize()
        await pair.at.idle()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 501])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_error_that_is_the_requests_own_is_not_tried_elsewhere(role: str, status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "never"}}, status)

    on = {f"on_{role}": refuse}
    async with split(**on) as pair, engine() as other:
        await pair.at.admit(role, other)
        statuses = [(await pair.at.post()).status_code for _ in range(2)]
        assert sorted(statuses) == [200, status]
        assert pair.at.router.metrics.retries.value == 0
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
        assert (pair.decode.turns.qsize(), other.turns.qsize()) == (1, 1), "an engine that has failed is avoided"
        for _ in range(2):
            await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_drops_is_followed_by_another(role: str):
    on = {f"on_{role}": drop}
    async with split(**on, limits=quick(stale=0.0)) as pair, engine() as other:
        await pair.at.admit(role, other)
        for _ in range(2):
            response = await pair.at.post()
            assert response.status_code == 200
            assert response.headers[f"x-router-{role}-url"] == other.url
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
