"""Registration, heartbeats, and health: who gets requests, and who stops getting them."""

import asyncio

import pytest
from router_mocks import MockEngine, Running, engine, hold, quick, running, split, until


async def numbers(at: Running) -> dict[str, int]:
    return (await at.http.get("/registered_number")).json()


async def test_lists_and_numbers():
    async with split() as pair:
        assert await numbers(pair.at) == {"mixed": 0, "prefill": 1, "decode": 1}
        registered = (await pair.at.http.get("/registered")).json()
        assert registered["mixed"] == []
        assert registered["prefill"] == [
            {
                "role": "prefill",
                "host_ip": "127.0.0.1",
                "port": pair.prefill.port,
                "metrics_port": 0,
                "connector_port": 0,
                "engine_worker_queue_port": 0,
                "transfer_protocol": ["ipc"],
                "rdma_ports": [],
                "device_ids": [],
                "tp_size": 1,
                "version": "",
                "is_paused": False,
                "connected_decodes": [],
                "model": "m",
                "max_model_len": None,
                "protocol": "fastdeploy",
                "bootstrap_port": 0,
                "prefill_on_decode": False,
                "kv_events": False,
            }
        ]


async def test_a_refused_registration_says_why_and_changes_nothing():
    async with engine() as mock, running(splitwise=True) as at:
        wrong = b'{"role": "prefill", "host_ip": "x", "port": 1}'
        for body in (b"", b"{", wrong, b"[" * 100_000, b'{"role": "\xff"}'):
            response = await at.http.post("/register", content=body)
            assert response.status_code == 400
            assert set(response.json()) == {"detail"}
        response = await at.register("prefill", mock, tp_size=0)
        assert "tp_size" in response.json()["detail"]
        assert await numbers(at) == {"mixed": 0, "prefill": 0, "decode": 0}


@pytest.mark.parametrize(("splitwise", "role"), [(True, "mixed"), (False, "prefill"), (False, "decode")])
async def test_a_role_of_the_other_mode_is_refused(splitwise: bool, role: str):
    async with engine() as mock, running(splitwise=splitwise) as at:
        response = await at.register(role, mock)
        assert response.status_code == 400
        assert role in response.json()["detail"]
        assert "--splitwise" in response.json()["detail"]


async def test_an_engine_that_is_not_healthy_yet_is_refused():
    async with engine() as mock, running() as at:
        mock.health_status = 503
        response = await at.register("mixed", mock)
        assert response.status_code == 400
        assert response.json()["detail"] == f"{mock.url} is not healthy: /health answers 503"
        await until(lambda: not mock.open, "the refused engine's connection to be closed")
        mock.health_status = 200
        await at.admit("mixed", mock)


async def test_an_engine_that_is_not_there_is_refused():
    async with engine() as mock, running() as at:
        await mock.stop()
        response = await at.register("mixed", mock)
        assert response.json()["detail"] == f"{mock.url} is not healthy: Connection refused"


async def test_an_engine_whose_health_hangs_is_refused():
    class Hanging(MockEngine):
        async def _converse(self, reader, writer, number):
            await asyncio.Event().wait()

    mock = Hanging()
    await mock.start()
    async with running(limits=quick(probe_timeout=0.1)) as at:
        response = await at.register("mixed", mock)
        assert response.json()["detail"] == f"{mock.url} is not healthy: no answer to /health within 0.1 s"
    await mock.stop()


async def test_a_heartbeat_updates_in_place_and_asks_no_health():
    async with engine() as mock, running() as at:
        await at.admit("mixed", mock)
        before = at.router.registry.instances[mock.key]
        await at.admit("mixed", mock)
        await at.admit("mixed", mock, version="2")
        assert at.router.registry.instances[mock.key] is before
        assert (await at.http.get("/registered")).json()["mixed"][0]["version"] == "2"
        assert mock.health_checks == 1


async def test_a_change_of_role_moves_the_instance():
    async with engine() as mock, running(splitwise=True) as at:
        await at.admit("prefill", mock)
        await at.admit("decode", mock)
        assert await numbers(at) == {"mixed": 0, "prefill": 0, "decode": 1}


async def test_registrations_at_once_make_one_instance():
    async with engine() as mock, running() as at:
        responses = await asyncio.gather(*(at.register("mixed", mock) for _ in range(5)))
        assert {response.status_code for response in responses} == {200}
        assert await numbers(at) == {"mixed": 1, "prefill": 0, "decode": 0}


async def test_without_heartbeats_an_instance_is_removed_and_its_connections_are_closed():
    async with engine() as mock, running(heartbeat_timeout=0.5) as at:
        await at.admit("mixed", mock)
        pool = at.router.registry.instances[mock.key].pool
        assert pool.open
        await until(lambda: not at.router.registry.instances, "the removal")
        await until(lambda: not pool.open, "the connections to be closed")
        assert (await at.http.get("/health")).json()["error"]["message"] == "no mixed instance is registered"
        await at.admit("mixed", mock)
        assert (await at.post()).status_code == 200


async def test_a_request_outlives_its_engines_registration():
    async with engine(hold) as mock, running(heartbeat_timeout=0.5) as at:
        await at.admit("mixed", mock)
        pool = at.router.registry.instances[mock.key].pool
        request = asyncio.create_task(at.post())
        turn = await mock.turn()
        await until(lambda: not at.router.registry.instances, "the removal")
        await turn.answer({"late": True})
        assert (await request).json() == {"late": True}
        await until(lambda: not pool.open, "its connection to be closed, not kept")


async def test_an_engine_that_turns_unhealthy_is_taken_out_after_the_second_failure_and_comes_back():
    async with engine() as mock, running(limits=quick(probe_interval=0.05)) as at:
        await at.admit("mixed", mock)
        instance = at.router.registry.instances[mock.key]
        mock.health_status = 500
        await until(lambda: not instance.live, "the second failure")
        reason = (await at.http.get("/health")).json()["error"]["message"]
        assert reason == f"no mixed instance answers: {mock.url}: /health answers 500 (2 times in a row)"
        assert await numbers(at) == {"mixed": 0, "prefill": 0, "decode": 0}
        assert (await at.post()).status_code == 503
        mock.health_status = 200
        await until(lambda: instance.live, "the next check")
        assert at.router.registry.instances[mock.key] is instance
        assert (await at.post()).status_code == 200


async def test_a_single_failure_is_forgiven():
    class Ailing(MockEngine):
        @property
        def health_status(self) -> int:
            return 500 if self.health_checks == 2 else 200  # the first one admits it

        @health_status.setter
        def health_status(self, value: int) -> None: ...

    mock = Ailing()
    await mock.start()
    async with running(limits=quick(probe_interval=0.02)) as at:
        await at.admit("mixed", mock)
        changes: list[str] = []
        at.router.registry.on_change = lambda: changes.append("out or in")
        await until(lambda: mock.health_checks >= 4, "two checks after the failed one")
        assert not changes
        assert at.router.registry.instances[mock.key].live
    await mock.stop()


@pytest.mark.parametrize(("failures", "successes"), [(1, 1), (3, 2)])
async def test_how_many_checks_take_an_engine_out_and_bring_it_in(failures: int, successes: int):
    limits = quick(probe_interval=0.02, probe_failures=failures, probe_successes=successes)
    async with engine() as mock, running(limits=limits) as at:
        await at.admit("mixed", mock)
        instance = at.router.registry.instances[mock.key]
        checked = mock.health_checks
        mock.health_status = 500
        await until(lambda: not instance.live, "the last failure")
        assert f"({failures} times in a row)" in instance.reason
        assert mock.health_checks >= checked + failures
        checked = mock.health_checks
        mock.health_status = 200
        await until(lambda: instance.live, "the last success")
        assert mock.health_checks >= checked + successes


async def test_an_engine_that_vanishes_is_taken_out_by_the_first_check():
    async with engine() as mock, running(limits=quick(probe_interval=0.05)) as at:
        await at.admit("mixed", mock)
        instance = at.router.registry.instances[mock.key]
        await mock.stop()
        await until(lambda: not instance.live, "the check")
        assert instance.reason == "Connection refused"


async def test_a_dropped_request_lets_the_engine_be_checked_at_once():
    async with engine(hold) as mock, running(limits=quick(probe_interval=1000.0, stale=0.0)) as at:
        await at.admit("mixed", mock)
        request = asyncio.create_task(at.post())
        await mock.turn()
        await mock.stop()
        assert (await request).status_code == 502
        await until(lambda: not at.router.registry.instances[mock.key].live, "the check")


async def test_router_health():
    async with engine() as prefill, engine() as decode, running(splitwise=True) as at:
        for role, mock in (("prefill", prefill), ("decode", decode)):
            response = await at.http.get("/health")
            assert response.status_code == 503
            assert role in response.json()["error"]["message"]
            await at.admit(role, mock)
        assert (await at.http.get("/health")).status_code == 200
        assert (await at.http.get("/health/live")).status_code == 200


async def test_control_calls_need_the_token():
    async with engine() as mock, running(token="secret") as at:
        for path in ("/register", "/v1/abort_requests"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                response = await at.http.post(path, content=b"{}", headers=headers)
                assert response.status_code == 401
        assert (await at.register("mixed", mock)).json() == {"status": "success"}
        assert (await at.post()).status_code == 200


async def test_a_prefill_engine_is_told_to_which_decode_engines_it_may_send_kv():
    async with engine() as p, engine() as d, engine() as e, engine() as f, running(splitwise=True) as at:
        fields = {"protocol": "builtin", "connector_port": 9000}
        await at.admit("decode", d, **fields)
        await at.admit("decode", e, **fields, model="another")
        await at.admit("decode", f, protocol="builtin")
        answer = (await at.register("prefill", p, protocol="builtin")).json()
        assert answer == {"status": "success", "decodes": [{"host_ip": "127.0.0.1", "connector_port": 9000}]}
        assert (await at.register("decode", d, **fields)).json() == {"status": "success"}


async def test_models():
    async with engine() as first, engine() as second, engine() as nameless, running() as at:
        assert (await at.http.get("/v1/models")).json() == {"object": "list", "data": []}
        await at.admit("mixed", first, model="org/chat", max_model_len=4096)
        await at.admit("mixed", second, model="org/chat", max_model_len=2048)
        await at.admit("mixed", nameless, model="")
        [model] = (await at.http.get("/v1/models")).json()["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("org/chat", "model", 2048)
        for name in ("org/chat", "org%2Fchat"):
            assert (await at.http.get(f"/v1/models/{name}")).json() == model


async def test_aborts_reach_every_engine():
    async with split(token="t") as pair:
        body = {"req_ids": ["a", "b"]}
        response = await pair.at.http.post("/v1/abort_requests", json=body, headers={"Authorization": "Bearer t"})
        assert response.status_code == 200
        assert response.json()["results"] == {pair.prefill.url: "answered 200", pair.decode.url: "answered 200"}
        for mock in (pair.prefill, pair.decode):
            turn = await mock.turn()
            assert (turn.target, turn.json["abort_all"]) == ("/v1/abort_requests", False)
            # Any attempt may be under way, and in another worker.
            ids = turn.json["req_ids"]
            assert {"a", "a-retry1", "a-retry11", "b", "b-retry1", "b-retry11"} <= set(ids)
            assert {request_id.partition("-retry")[0] for request_id in ids} == {"a", "b"}
            assert turn.headers["authorization"] == "Bearer t"


async def test_an_abort_that_an_engine_does_not_take_is_reported():
    async def refuse(turn):
        await turn.answer({}, 404)

    async with split(on_prefill=refuse, on_decode=hold, limits=quick(abort_timeout=0.1)) as pair:
        response = await pair.at.http.post("/v1/abort_requests", json={"abort_all": True})
        assert response.status_code == 502
        assert response.json()["results"] == {
            pair.prefill.url: "answered 404",
            pair.decode.url: "no answer to /v1/abort_requests within 0.1 s",
        }


@pytest.mark.parametrize(
    "body", [{}, {"abort_all": False}, {"abort_all": True, "req_ids": ["a"]}, {"req_ids": "a"}, []]
)
async def test_an_abort_must_say_what(body: object):
    async with split() as pair:
        assert (await pair.at.http.post("/v1/abort_requests", json=body)).status_code == 400
        assert pair.prefill.turns.empty()
