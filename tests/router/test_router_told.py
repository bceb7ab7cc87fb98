"""What one worker does when another tells it of engines, and what it tells the others itself."""

import pytest
from router_mocks import MockEngine, Running, engine, quick, running, until

from pdctl.router.engines.instance import Registration, ServedModel
from pdctl.router.settings import FixedInstance
from pdctl.router.workers.bus import Aborted, Drained, Found, Message, Registered, Removed


def registration(mock: MockEngine, **fields: object) -> Registration:
    return Registration(role="mixed", host_ip="127.0.0.1", port=mock.port, model="m", **fields)  # type: ignore[arg-type]


def tell(at: Running, message: Message) -> None:
    at.router.bus.receive(message)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What is published, by all routers."""
    messages: list[Message] = []
    monkeypatch.setattr("pdctl.router.workers.bus.Bus.publish", lambda _, message: messages.append(message))
    return messages


async def test_only_the_first_registration_and_a_changed_one_are_news(told: list[Message]):
    async with engine() as mixed, running() as at:
        for fields in ({}, {}, {"is_paused": True}, {"is_paused": True}):
            await at.admit("mixed", mixed, **fields)
        assert [message.news for message in told if isinstance(message, Registered)] == [True, False, True, False]


async def test_drains_removals_and_aborts_are_told(told: list[Message]):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        told.clear()
        await at.http.post(f"/instances/{mixed.key}/drain")
        await at.http.post(f"/instances/{mixed.key}/undrain")
        await at.http.delete(f"/instances/{mixed.key}")
        await at.http.post("/v1/abort_requests", json={"req_ids": ["a"]})
        assert told == [Drained(mixed.key, True), Drained(mixed.key, False), Removed(mixed.key), Aborted(["a"])]


async def test_an_engine_of_another_worker_gets_requests_without_a_question():
    async with engine() as mixed, running() as at:
        tell(at, Registered(registration(mixed), "its id", news=True))
        assert (await at.post()).status_code == 200
        assert at.router.registry.instances[mixed.key].engine_id == "its id"
        assert mixed.health_checks == 0


async def test_a_heartbeat_elsewhere_does_not_bring_in_what_this_worker_found_dead():
    async with engine() as mixed, running() as at:
        tell(at, Registered(registration(mixed), "", news=True))
        instance = at.router.registry.instances[mixed.key]
        mixed.health_status = 500
        at.router.registry.take_out(instance, "it hangs")
        before = instance.last_heartbeat = -1.0
        tell(at, Registered(registration(mixed), "", news=False))
        assert (instance.live, instance.last_heartbeat > before) == (False, True)
        tell(at, Registered(registration(mixed), "another", news=True))  # it has just been found healthy
        assert (instance.live, instance.engine_id) == (True, "another")


async def test_an_engine_that_is_found_healthy_elsewhere_gets_requests_here():
    async with engine() as mixed:
        mixed.health_status = 503
        async with running(fixed=(FixedInstance("mixed", "127.0.0.1", mixed.port, 0),)) as at:
            tell(at, Found(mixed.key, "its id", ServedModel("m", 512)))
            instance = at.router.registry.instances[mixed.key]
            assert (instance.live, instance.engine_id, instance.registration.model) == (True, "its id", "m")
            assert (await at.post()).status_code == 200
            tell(at, Found(mixed.key, "another", ServedModel("m", 512)))
            assert instance.engine_id == "another"
            tell(at, Found("127.0.0.1:1", "", None))
            assert list(at.router.registry.instances) == [mixed.key]


async def test_what_a_worker_finds_healthy_it_tells_once(told: list[Message]):
    async with engine() as mixed:
        mixed.models = {"data": [{"id": "m"}]}
        fixed = (FixedInstance("mixed", "127.0.0.1", mixed.port, 0),)
        async with running(fixed=fixed, limits=quick(probe_interval=0.02)) as at:
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
            asked = mixed.health_checks
            await until(lambda: mixed.health_checks > asked + 1, "another check")
            assert told == [Found(mixed.key, "", ServedModel("m"))]


async def test_a_model_that_a_worker_was_told_is_told_with_the_registration(told: list[Message]):
    async with engine() as mixed, running() as at:
        mixed.models = {"data": [{"id": "m"}]}
        await at.admit("mixed", mixed, model="")
        [registered] = [message for message in told if isinstance(message, Registered)]
        assert (registered.registration.model, registered.served) == ("", ServedModel("m"))
    async with running() as other:
        tell(other, registered)
        assert [model["id"] for model in (await other.http.get("/v1/models")).json()["data"]] == ["m"]


async def test_a_removed_engine_that_tries_to_come_back_is_told_to_all(told: list[Message]):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        await at.http.delete(f"/instances/{mixed.key}")
        told.clear()
        assert (await at.register("mixed", mixed)).status_code == 400
        assert told == [Removed(mixed.key)]


@pytest.mark.parametrize("known", [True, False])
async def test_a_removal_elsewhere_holds_here(*, known: bool):
    async with engine() as mixed, running() as at:
        if known:
            await at.admit("mixed", mixed)
        tell(at, Removed(mixed.key))
        assert "was removed by an operator" in (await at.register("mixed", mixed)).text
        tell(at, Registered(registration(mixed), "", news=True))  # on its way when it was removed
        assert at.router.registry.instances == {}


async def test_what_is_told_of_a_removed_engine_is_no_try_to_come_back():
    async with engine() as mixed, running(heartbeat_timeout=0.2) as at:
        tell(at, Removed(mixed.key))

        def is_back() -> bool:
            tell(at, Registered(registration(mixed), "", news=False))
            return mixed.key in at.router.registry.instances

        assert not is_back()
        await until(is_back, "its return after the time for that")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/register", {"role": "mixed", "host_ip": "127.0.0.1", "port": 1, "connected_decodes": ["x" * 300_000]}),
        ("/v1/abort_requests", {"req_ids": ["x" * 1_100_000]}),
    ],
)
async def test_what_would_be_too_much_for_the_others(told: list[Message], path: str, body: dict[str, object]):
    async with running() as at:
        response = await at.http.post(path, json=body)
        assert response.status_code == 413
        assert "at most" in response.json()["detail"]
        assert told == []
