"""What operators may do: drain engines and take them back, remove them, abort requests; with the deployment's token."""

import asyncio

import httpx
import pytest
from router_mocks import ANSWER, MockEngine, Running, Turn, engine, hold, message, quick, running, split, until
from router_protocol_mocks import ask, protocol_pair

TOKEN = {"Authorization": "Bearer secret"}


async def operate(at: Running, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return await at.http.request(method, f"/instances/{path}", headers=headers)


async def described(at: Running, mock: MockEngine) -> dict[str, object]:
    [one] = [one for one in (await at.http.get("/instances")).json() if one["id"] == mock.key]
    return one


# Draining.


async def test_a_draining_engine_ends_what_it_has_and_gets_nothing_new():
    async with engine(hold) as one, engine() as two, running() as at:
        await at.admit("mixed", one)
        request = asyncio.create_task(at.post())
        turn = await one.turn()
        await at.admit("mixed", two)
        response = await operate(at, "POST", f"{one.key}/drain")
        assert (response.status_code, response.json()["state"]) == (200, "draining")
        assert response.json()["requests_in_flight"] == 1, "an operator sees when it is empty"
        for _ in range(3):
            assert (await at.post()).headers["x-router-decode-url"] == two.url
        await turn.answer(ANSWER)
        assert (await request).json() == ANSWER
        assert (await described(at, one))["requests_in_flight"] == 0
        assert one.turns.empty()
        assert f'instance_draining{{role="mixed",instance="{one.key}"}} 1' in (await at.http.get("/metrics")).text
        await at.idle()


async def test_heartbeats_and_health_do_not_end_a_drain():
    async with engine() as one, running(limits=quick(probe_interval=0.01)) as at:
        await at.admit("mixed", one)
        await operate(at, "POST", f"{one.key}/drain")
        await at.admit("mixed", one)
        checks = one.health_checks
        await until(lambda: one.health_checks > checks + 2, "some probes")
        response = await at.post()
        assert (response.status_code, message(response)) == (503, "every mixed instance is draining")
        assert (await at.http.get("/health")).status_code == 503


async def test_undraining_lets_requests_in_again():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        await operate(at, "POST", f"{one.key}/drain")
        assert (await at.post()).status_code == 503
        response = await operate(at, "POST", f"{one.key}/undrain")
        assert (response.status_code, response.json()["state"]) == (200, "ready")
        assert (await at.post()).status_code == 200


async def test_draining_twice_is_draining():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        for action in ("drain", "drain", "undrain", "undrain"):
            assert (await operate(at, "POST", f"{one.key}/{action}")).status_code == 200
        assert (await at.post()).status_code == 200


async def test_a_stream_of_a_draining_engine_is_not_disturbed():
    async with protocol_pair("builtin", on_decode=hold) as pair:
        client = await ask(pair.at)
        turn = await pair.decode.turn()
        await turn.start_stream()
        await operate(pair.at, "POST", f"{pair.decode.key}/drain")
        await turn.event(b"[DONE]")
        await turn.end_stream()
        await client.head()
        assert (await client.rest(), client.whole) == (b"data: [DONE]\n\n", True)
        await pair.at.idle()


# Removing.


async def test_a_removed_engine_ends_what_it_has_and_is_forgotten():
    async with engine(hold) as one, engine() as two, running() as at:
        await at.admit("mixed", one)
        request = asyncio.create_task(at.post())
        turn = await one.turn()
        await at.admit("mixed", two)
        response = await operate(at, "DELETE", one.key)
        assert (response.status_code, response.json()["id"]) == (200, one.key)
        assert [entry["id"] for entry in (await at.http.get("/instances")).json()] == [two.key]
        assert one.key not in (await at.http.get("/metrics")).text
        await turn.answer(ANSWER)
        assert (await request).json() == ANSWER
        await turn.peer_left()
        await at.idle()


async def test_a_removed_engine_that_still_registers_is_refused():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        await operate(at, "DELETE", one.key)
        response = await at.register("mixed", one)
        assert response.status_code == 400
        assert "was removed by an operator" in response.json()["detail"]
        assert message(await at.post()) == "no mixed instance is registered"


async def test_a_removed_engine_may_come_back_after_a_silence():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        await operate(at, "DELETE", one.key)
        at.router.registry.check(at.router.now() + at.router.settings.heartbeat_timeout + 1)
        await at.admit("mixed", one)
        assert (await at.post()).status_code == 200


# Who may, and what there is.


@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
async def test_operations_need_the_token(headers: dict[str, str] | None):
    async with engine() as one, running(token="secret") as at:
        await at.admit("mixed", one)
        for method, path in (("POST", f"{one.key}/drain"), ("POST", f"{one.key}/undrain"), ("DELETE", one.key)):
            assert (await operate(at, method, path, headers)).status_code == 401
            assert (await operate(at, method, "10.0.0.1:1", headers)).status_code in (401, 404)
        abort = await at.http.post("/v1/abort_requests", json={"abort_all": True}, headers=headers)
        assert abort.status_code == 401
        assert one.turns.empty()
        assert (await described(at, one))["state"] == "ready"
        assert (await at.post()).status_code == 200, "requests need none"


async def test_the_token_opens_operations():
    async with engine() as one, running(token="secret") as at:
        await at.admit("mixed", one)
        assert (await operate(at, "POST", f"{one.key}/drain", TOKEN)).status_code == 200
        assert (await operate(at, "POST", f"{one.key}/undrain", TOKEN)).status_code == 200
        assert (await operate(at, "DELETE", one.key, TOKEN)).status_code == 200


async def test_an_unknown_engine_without_the_token_is_not_told_apart_from_a_known_one():
    async with running(token="secret") as at:
        assert (await operate(at, "DELETE", "10.0.0.1:1")).status_code == 401


async def test_what_is_not_there_is_said():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        for method, path in (("POST", "10.0.0.1:1/drain"), ("DELETE", "10.0.0.1:1"), ("DELETE", "")):
            assert (await operate(at, method, path)).status_code == 404
        for path in (f"{one.key}/explode", one.key, f"{one.key}/"):
            response = await operate(at, "POST", path)
            assert response.status_code == 404
            assert "an instance takes drain or undrain" in message(response)
        response = await operate(at, "PUT", f"{one.key}/drain")
        assert response.status_code == 405


async def test_an_engines_name_may_be_escaped():
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        assert (await operate(at, "POST", one.key.replace(":", "%3A") + "/drain")).status_code == 200


async def test_instances_are_described():
    async with split() as pair:
        entry = await described(pair.at, pair.prefill)
        assert entry == {
            "id": pair.prefill.key,
            "role": "prefill",
            "model": "m",
            "protocol": "fastdeploy",
            "state": "ready",
            "reason": "",
            "breaker": "closed",
            "requests_in_flight": 0,
            "tokens_in_flight": 0,
            "fixed": False,
        }
        await pair.at.admit("prefill", pair.prefill, is_paused=True)
        assert (await described(pair.at, pair.prefill))["state"] == "paused"
        pair.at.router.registry.take_out(pair.at.router.registry.instances[pair.decode.key], "it is gone")
        entry = await described(pair.at, pair.decode)
        assert (entry["state"], entry["reason"]) == ("down", "it is gone")


# Aborting.


async def accept_aborts(turn: Turn) -> None:
    if turn.target == "/v1/abort_requests":
        await turn.answer({})
    else:
        await hold(turn)


async def test_an_abort_reaches_every_engine_with_the_token():
    async with split(accept_aborts, accept_aborts, token="secret") as pair:
        response = await pair.at.http.post("/v1/abort_requests", json={"req_ids": ["a", "b"]}, headers=TOKEN)
        assert response.status_code == 200
        assert set(response.json()["results"]) == {pair.prefill.url, pair.decode.url}
        for mock in (pair.prefill, pair.decode):
            turn = await mock.turn()
            assert turn.headers["authorization"] == "Bearer secret"
            assert {"a", "b", "a-retry1", "b-retry1"} <= set(turn.json["req_ids"])
            assert turn.json["abort_all"] is False


async def test_an_abort_that_an_engine_does_not_take_is_told():
    async def refuse(turn: Turn) -> None:
        await turn.answer({}, 404)

    async with engine(accept_aborts) as one, engine(refuse) as two, running() as at:
        await at.admit("mixed", one)
        await at.admit("mixed", two)
        response = await at.http.post("/v1/abort_requests", json={"abort_all": True})
        assert response.status_code == 502
        assert response.json()["results"] == {one.url: "answered 200", two.url: "answered 404"}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"req_ids":[]}', b'{"abort_all":true,"req_ids":["a"]}', b'{"req_ids":1}']
)
async def test_an_abort_of_nothing_is_refused(body: bytes):
    async with engine() as one, running() as at:
        await at.admit("mixed", one)
        response = await at.http.post("/v1/abort_requests", content=body)
        assert response.status_code == 400
        assert one.turns.empty()


@pytest.mark.parametrize("wanted", [{"req_ids": ["mine"]}, {"abort_all": True}])
async def test_engines_that_take_no_aborts_lose_their_clients(wanted: dict[str, object]):
    async with protocol_pair("sglang", hold, hold) as pair:
        request = asyncio.create_task(pair.at.post(headers={"X-Request-Id": "mine"}))
        turns = [await pair.prefill.turn(), await pair.decode.turn()]
        assert (await pair.at.http.post("/v1/abort_requests", json=wanted)).json() == {"results": {}}
        response = await request
        assert (response.status_code, response.json()["error"]["code"]) == (499, "aborted")
        for turn in turns:
            await turn.peer_left()
        await pair.at.idle()


async def test_an_abort_leaves_other_requests_alone():
    async with protocol_pair("sglang", hold, hold) as pair:
        mine, other = (asyncio.create_task(pair.at.post(headers={"X-Request-Id": name})) for name in ("mine", "other"))
        turns = {}
        for _ in range(2):
            turn = await pair.decode.turn()
            turns[turn.headers["x-request-id"]] = turn
        await pair.at.http.post("/v1/abort_requests", json={"req_ids": ["mine", "unknown"]})
        assert (await mine).status_code == 499
        await turns["other"].answer(ANSWER)
        assert (await other).status_code == 200
