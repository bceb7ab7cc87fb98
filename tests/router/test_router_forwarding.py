"""A request that goes well: what its engines get, and what its client gets."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_mocks import (
    ANSWER,
    CHAT,
    LIMIT,
    PROMPT,
    Split,
    Turn,
    answer_at_once,
    engine,
    hold,
    quick,
    running,
    split,
    until,
)


async def test_both_engines_get_the_same_body_and_the_client_gets_decodes_answer():
    async def prefill(turn: Turn) -> None:
        await turn.answer({"id": "p", "object": "prefill"})

    async with split(on_prefill=prefill) as pair:
        response = await pair.at.post()
        assert response.status_code == 200
        assert response.json() == ANSWER
        assert response.headers["x-router-prefill-url"] == pair.prefill.url
        assert response.headers["x-router-decode-url"] == pair.decode.url
        p, d = await pair.prefill.turn(), await pair.decode.turn()
        assert (p.method, p.target, p.body) == (d.method, d.target, d.body) == ("POST", CHAT, d.body)
        info = d.json.pop("disaggregate_info")
        assert (info["prefill_ip"], info["prefill_port"]) == ("127.0.0.1", pair.prefill.port)
        assert (info["decode_ip"], info["decode_port"]) == ("127.0.0.1", pair.decode.port)
        assert info["transfer_protocol"] == "ipc"
        assert d.json == PROMPT | {"request_id": response.headers["x-request-id"], "disaggregate_info": info}
        assert p.headers["host"] == pair.prefill.key
        assert d.headers["host"] == pair.decode.key
        await pair.at.idle()


async def test_both_engines_get_it_before_either_has_answered():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        p, d = await pair.prefill.turn(), await pair.decode.turn()
        assert pair.at.load(pair.prefill)[0] == pair.at.load(pair.decode)[0] == 1
        await p.answer({})
        await until(lambda: pair.at.load(pair.prefill) == (0, 0), "the prefill's load to be released")
        assert pair.at.load(pair.decode)[0] == 1
        await d.answer(ANSWER)
        assert (await request).json() == ANSWER
        await pair.at.idle()


async def test_mixed_mode():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        response = await at.post(path="/v1/completions?debug=1", body={"prompt": "x"})
        turn = await mixed.turn()
        assert turn.target == "/v1/completions?debug=1"
        assert turn.json == {"prompt": "x", "request_id": response.headers["x-request-id"]}
        assert response.headers["x-router-decode-url"] == mixed.url
        assert "x-router-prefill-url" not in response.headers


async def test_headers_of_the_client_reach_the_engines_and_those_of_the_connection_do_not():
    async with engine() as mixed, running(token="t0") as at:
        await at.admit("mixed", mixed)
        sent = {
            "Authorization": "Bearer user",
            "X-Trace": "abc",
            "X-Pdctl-Token": "t0",
            "Keep-Alive": "3",
            "TE": "trailers",
        }
        await at.post(headers=sent)
        got = (await mixed.turn()).headers
        assert got["authorization"] == "Bearer user"
        assert got["x-trace"] == "abc"
        assert got["content-type"] == "application/json"
        assert not {"x-pdctl-token", "keep-alive", "te", "connection", "accept-encoding"} & set(got)


async def test_headers_and_status_of_the_engine_reach_the_client():
    async def teapot(turn: Turn) -> None:
        await turn.answer({"short": "stout"}, 418, "X-Engine: 1\r\nConnection: X-Secret\r\nX-Request-Id: other\r\n")

    async with split(on_decode=teapot) as pair:
        response = await pair.at.post(headers={"X-Request-Id": "mine"})
        assert (response.status_code, response.json()) == (418, {"short": "stout"})
        assert response.headers["x-engine"] == "1"
        assert response.headers["x-request-id"] == "mine"
        assert "x-secret" not in response.headers.get("connection", "").lower()


@pytest.mark.parametrize(
    ("header", "member", "expected"), [("h", "b", "h"), ("h", None, "h"), (None, "b", "b"), (None, None, None)]
)
async def test_the_request_id_is_the_headers_then_the_bodys_then_new(
    header: str | None, member: str | None, expected: str | None
):
    async with split() as pair:
        body = PROMPT | ({"request_id": member} if member else {})
        response = await pair.at.post(body, headers={"X-Request-Id": header} if header else None)
        request_id = response.headers["x-request-id"]
        assert request_id == expected or (expected is None and len(request_id) == 32)
        for mock in (pair.prefill, pair.decode):
            turn = await mock.turn()
            assert turn.json["request_id"] == turn.headers["x-request-id"] == request_id


async def test_a_request_id_that_is_in_flight_is_refused():
    async with split(on_decode=hold) as pair:
        first = asyncio.create_task(pair.at.post(headers={"X-Request-Id": "same"}))
        turn = await pair.decode.turn()
        second = await pair.at.post(headers={"X-Request-Id": "same"})
        assert second.status_code == 409
        assert "same" in second.json()["error"]["message"]
        await turn.answer(ANSWER)
        assert (await first).status_code == 200
        await pair.at.idle()


@pytest.mark.parametrize("request_id", ["with space", "x" * 129, "tab\there"])
async def test_a_request_id_that_could_not_be_a_header_is_refused(request_id: str):
    async with split() as pair:
        assert (await pair.at.post(PROMPT | {"request_id": request_id})).status_code == 400


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b'{"request_id": 7}'])
async def test_a_body_that_is_no_request_reaches_no_engine(body: bytes):
    async with split() as pair:
        response = await pair.at.http.post(CHAT, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert pair.decode.turns.empty()


async def test_connections_to_engines_are_kept():
    async with split() as pair:
        for _ in range(5):
            await pair.at.post()
        assert {(await pair.decode.turn()).connection for _ in range(5)} == {1}
        assert pair.decode.connections == 1  # the one of the health check at registration, too


async def test_an_idle_connection_to_an_engine_is_closed_after_a_while():
    async with split(limits=quick(engine_idle_timeout=0.05)) as pair:
        await pair.at.post()
        instance = pair.at.router.registry.instances[pair.decode.key]
        await until(lambda: not instance.pool.open, "the idle connection to be closed")
        assert (await pair.at.post()).status_code == 200


async def test_a_connection_that_went_stale_is_replaced():
    async def answer_and_vanish(turn: Turn) -> None:
        if turn.connection == 1 and len(pair.decode.turns._queue) > 1:
            turn.drop()  # while the router takes it for a kept-alive one
        else:
            await turn.answer(ANSWER)

    async with split(on_decode=answer_and_vanish) as pair:
        assert (await pair.at.post()).status_code == 200
        assert (await pair.at.post()).json() == ANSWER
        instance = pair.at.router.registry.instances[pair.decode.key]
        assert instance.pool.stale_retries == 1
        assert instance.live
        turns = [await pair.decode.turn() for _ in range(3)]
        assert [turn.connection for turn in turns] == [1, 1, 2]
        assert turns[1].body == turns[2].body
        await pair.at.idle()


async def test_a_stream_is_relayed_event_by_event():
    async with split(on_decode=hold) as pair:
        turn, response = await begin_stream(pair)
        lines = response.aiter_lines()
        for number in range(3):
            if number:
                await turn.event({"n": number})
            async with asyncio.timeout(LIMIT):
                assert await anext(lines) == f'data: {{"n": {number}}}'  # before the next one is written
                assert await anext(lines) == ""
        await turn.event(b"[DONE]")
        await turn.end_stream()
        assert [line async for line in lines] == ["data: [DONE]", ""]
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["transfer-encoding"] == "chunked"


async def begin_stream(pair: Split) -> tuple[Turn, httpx.Response]:
    request = pair.at.http.build_request("POST", CHAT, json=PROMPT)
    sending = asyncio.create_task(pair.at.http.send(request, stream=True))
    turn = await pair.decode.turn()
    await turn.start_stream()
    await turn.event({"n": 0})
    return turn, await sending


async def test_the_same_client_connection_serves_after_a_stream():
    async def stream(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"n": 1})
        await turn.end_stream()

    async with split(on_decode=stream) as pair:
        for _ in range(3):
            assert (await pair.at.post()).content == b'data: {"n": 1}\n\n'
        assert len(pair.at.router.server.clients) == 1
        await pair.at.idle()


async def test_a_stream_for_an_http_1_0_client_ends_with_its_connection():
    async with split(on_decode=hold) as pair:
        body = json.dumps(PROMPT).encode()
        request = (
            f"POST {CHAT} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        answer = asyncio.create_task(pair.at.say(request))
        turn = await pair.decode.turn()
        await turn.start_stream()
        await turn.event({"n": 1})
        await turn.end_stream()
        head, _, rest = (await answer).partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"chunked" not in head
        assert rest == b'data: {"n": 1}\n\n'


async def test_an_engine_that_ends_its_answer_by_closing():
    async def old(turn: Turn) -> None:
        await turn.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(ANSWER).encode())
        turn.writer.close()

    async with split(on_decode=old) as pair:
        for _ in range(2):
            assert (await pair.at.post()).json() == ANSWER
        await pair.at.idle()


async def test_interim_answers_are_not_the_answer():
    async def patient(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX-Interim: 1\r\n\r\n")
        await turn.answer(ANSWER)

    async with split(on_decode=patient) as pair:
        response = await pair.at.post()
        assert response.json() == ANSWER
        assert "x-interim" not in response.headers


async def test_an_engine_that_says_more_than_it_was_asked_keeps_no_connection():
    async def chatty(turn: Turn) -> None:
        await turn.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )

    async with split(on_decode=chatty) as pair:
        for _ in range(3):
            response = await pair.at.post()
            assert (response.status_code, response.content) == (200, b"{}")
        await pair.at.idle()


async def test_an_engine_that_begins_another_answer_keeps_no_connection():
    async def chatty(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 2")

    async with engine(chatty) as mixed, running() as at:
        await at.admit("mixed", mixed)
        for _ in range(3):
            assert (await at.post()).content == b"{}"


async def test_a_body_of_several_megabytes_passes():
    async with split() as pair:
        prompt = {"prompt": "word " * 1_000_000}
        assert (await pair.at.post(prompt)).status_code == 200
        assert (await pair.prefill.turn()).json["prompt"] == prompt["prompt"]
        assert (await pair.decode.turn()).json["prompt"] == prompt["prompt"]


async def test_an_answer_of_several_megabytes_passes():
    async def verbose(turn: Turn) -> None:
        await turn.answer({"text": "word " * 1_000_000})

    async with split(on_decode=verbose) as pair:
        assert (await pair.at.post()).json() == {"text": "word " * 1_000_000}


async def test_the_prefill_may_answer_last():
    async with split(on_prefill=hold) as pair:
        assert (await pair.at.post()).status_code == 200
        assert len(pair.at.router.in_flight) == 1
        await (await pair.prefill.turn()).answer({})
        await pair.at.idle()


async def test_a_prefill_that_never_answers_is_left_in_the_end():
    async with split(on_prefill=hold, limits=quick(prefill_linger=0.05)) as pair:
        assert (await pair.at.post()).status_code == 200
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_many_requests_at_once():
    async def slowly(turn: Turn) -> None:
        await asyncio.sleep(0.01)
        await answer_at_once(turn)

    async with split(on_decode=slowly) as pair:
        limits = httpx.Limits(max_connections=30)
        async with httpx.AsyncClient(
            base_url=pair.at.http.base_url, limits=limits, timeout=LIMIT, verify=False
        ) as http:
            responses = await asyncio.gather(*(http.post(CHAT, json=PROMPT) for _ in range(60)))
        assert {response.status_code for response in responses} == {200}
        assert len({response.headers["x-request-id"] for response in responses}) == 60
        await pair.at.idle()


@settings(max_examples=25, deadline=None)
@given(
    data=st.binary(max_size=300),
    chunks=st.lists(st.integers(1, 40), max_size=15),
    segments=st.lists(st.integers(1, 40), max_size=15),
    chunked=st.booleans(),
)
async def test_segments_of_an_answer_do_not_matter(data: bytes, chunks: list[int], segments: list[int], chunked: bool):
    message = frame(data, chunks, chunked)

    async def piecemeal(turn: Turn) -> None:
        start = 0
        for length in segments:
            await turn.send(message[start : start + length])
            await asyncio.get_running_loop().run_in_executor(None, int)  # lets the router read each on its own
            start += length
        await turn.send(message[start:])

    async with engine(piecemeal) as mixed, running() as at:
        await at.admit("mixed", mixed)
        for _ in range(2):
            response = await at.post()
            assert (response.status_code, response.content) == (200, data)
        await at.idle()


def frame(data: bytes, chunks: list[int], chunked: bool) -> bytes:
    """An answer with this body, in chunks of these sizes."""
    if not chunked:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
    pieces, start = [], 0
    for length in (*chunks, len(data)):
        piece = data[start : start + length]
        start += length
        if piece:
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(pieces) + b"0\r\nX-Trailer: 1\r\n\r\n"
