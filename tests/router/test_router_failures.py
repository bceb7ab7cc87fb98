"""Every way in which a request can fail, and what its client and its engines see of it."""

import asyncio

import pytest
from router_mocks import (
    CHAT,
    Turn,
    drop,
    engine,
    hold,
    message,
    quick,
    running,
    split,
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


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_can_have_no_body_puts_no_client_out_of_step(status: int):
    async def odd(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\nevil" % status)

    async with split(on_prefill=odd, on_decode=odd if status == 204 else hold) as pair:
        post = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode()
        answers = await pair.at.say(post + b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        first, second = answers.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"%d " % status)
        assert first.endswith(b"\r\n\r\n"), "no body"
        assert second.startswith(b"200 ")


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
    "nonsense",
    [b"SSH-2.0-x\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x00" * 99],
)
async def test_a_decode_that_does_not_speak_http(nonsense: bytes):
    async def babble(turn: Turn) -> None:
        await turn.send(nonsense)

    async with split(on_prefill=hold, on_decode=babble) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"decode instance {pair.decode.url}: not a valid HTTP answer")
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
        assert pair.at.metrics.leg_failures == {("prefill", "timeout"): 1, ("decode", "timeout"): 1}
        await (await pair.prefill.turn()).peer_left()
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()
