"""Which model an engine serves, asked of those that do not say it by themselves."""

import pytest
from router_mocks import PROMPT, MockEngine, Running, engine, message, quick, running, until

from pdctl.router.settings import FixedInstance


def fixed(role: str, mock: MockEngine) -> FixedInstance:
    return FixedInstance(role, "127.0.0.1", mock.port, 0)  # type: ignore[arg-type]


async def models(at: Running) -> list[str]:
    return [model["id"] for model in (await at.http.get("/v1/models")).json()["data"]]


# Engines that are named on the command line.


def serving(*names: str, **more: object) -> dict[str, object]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"} | more for name in names]}


async def test_a_fixed_engines_model_is_learned_when_it_is_found_healthy():
    async with engine() as prefill, engine() as decode:
        prefill.models, decode.models = serving("m", max_model_len=4096), serving("m", "alias", max_model_len=2048)
        named = (fixed("prefill", prefill), fixed("decode", decode))
        async with running(splitwise=True, protocol="vllm-nixl", fixed=named) as at:
            await until(lambda: at.router.registry.missing() is None, "the engines to be found healthy")
            [model] = (await at.http.get("/v1/models")).json()["data"]
            assert (model["id"], model["max_model_len"]) == ("m", 2048)
            assert (await at.post()).status_code == 200
            await at.idle()
            assert 'requests_total{route="/v1/chat/completions",model="m"' in (await at.http.get("/metrics")).text


async def test_fixed_engines_of_two_models_get_their_own_requests():
    async with engine() as one, engine() as two:
        one.models, two.models = serving("m"), serving("n")
        async with running(fixed=(fixed("mixed", one), fixed("mixed", two))) as at:
            await until(lambda: len(at.router.registry.live("mixed")) == 2, "both to be found healthy")
            for model, mock in (("m", one), ("n", two)):
                response = await at.post(PROMPT | {"model": model})
                assert response.headers["x-router-decode-url"] == mock.url
            assert (await at.post(PROMPT | {"model": "another"})).status_code == 404


async def test_a_fixed_engine_that_comes_back_with_another_model_is_asked_again():
    async with engine() as mixed:
        mixed.models = serving("m")
        async with running(fixed=(fixed("mixed", mixed),), limits=quick(probe_interval=1000.0)) as at:
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
            await mixed.stop()
            assert (await at.post()).status_code == 502
            mixed.models = serving("n")
            await mixed.start()
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy again")
            assert [model["id"] for model in (await at.http.get("/v1/models")).json()["data"]] == ["n"]


@pytest.mark.parametrize(("answer", "status"), [(None, 404), (serving(), 200), ({"error": "a key"}, 401)])
async def test_a_fixed_engine_that_does_not_name_its_model_serves_any(answer: object, status: int):
    async with engine() as mixed:
        mixed.models, mixed.models_status = answer, status
        async with running(fixed=(fixed("mixed", mixed),)) as at:
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
            assert await models(at) == []
            assert (await at.post()).status_code == 200


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (serving("m"), 503, "/v1/models answers 503"),
        *(
            (unreadable, 200, "/v1/models answers with no list of models")
            for unreadable in ({}, [], b"no JSON", b"\xff")
        ),
        ({"data": [{"name": "m"}]}, 200, "missing required field `id`"),
    ],
)
async def test_a_fixed_engine_that_cannot_tell_yet_is_not_ready(answer: object, status: int, reason: str):
    async with engine() as mixed:
        mixed.models, mixed.models_status = answer, status
        async with running(fixed=(fixed("mixed", mixed),)) as at:
            await until(lambda: reason in at.router.registry.instances[mixed.key].reason, "the reason")
            assert reason in message(await at.post())
            mixed.models, mixed.models_status = serving("m"), 200
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
            assert await models(at) == ["m"]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_fixed_engine_that_comes_back_and_does_not_tell_keeps_its_model(status: int):
    async with engine() as one, engine() as other:
        one.models, other.models = serving("m"), serving("n")
        fixed_ones = (fixed("mixed", one), fixed("mixed", other))
        async with running(fixed=fixed_ones, limits=quick(probe_interval=1000.0)) as at:
            instance = at.router.registry.instances[one.key]
            await until(lambda: len(at.router.registry.live("mixed")) == 2, "both to be found healthy")
            one.models_status = status
            at.router.registry.take_out(instance, "it hung")
            await until(lambda: instance.live, "it to be found healthy again")
            assert sorted(await models(at)) == ["m", "n"]
            for _ in range(2):
                response = await at.post(PROMPT | {"model": "n"})
                assert response.headers["x-router-decode-url"] == other.url, "it serves no other model than before"


# Engines that register without a name, as FastDeploy's.


async def test_a_registered_engine_without_a_name_is_asked():
    async with engine() as mixed, running() as at:
        mixed.models = serving("m", max_model_len=512)
        for _ in range(2):  # a heartbeat does not take it away
            await at.admit("mixed", mixed, model="")
            [model] = (await at.http.get("/v1/models")).json()["data"]
            assert (model["id"], model["max_model_len"]) == ("m", 512)
        assert (await at.post(PROMPT | {"model": "m"})).status_code == 200
        assert 'model="m"' in (await at.http.get("/metrics")).text


async def test_a_name_in_the_registration_is_not_asked_for():
    async with engine() as mixed, running() as at:
        mixed.models = serving("another")
        await at.admit("mixed", mixed, model="m")
        assert await models(at) == ["m"]


async def test_a_heartbeat_of_an_engine_that_was_asked_is_no_news():
    async with engine() as mixed, running() as at:
        mixed.models = serving("m")
        await at.admit("mixed", mixed, model="")
        changes: list[str] = []
        at.router.registry.on_change = lambda: changes.append("changed")
        await at.admit("mixed", mixed, model="")
        assert changes == []


async def test_a_registered_engine_that_cannot_tell_yet_is_refused_until_it_can():
    async with engine() as mixed, running() as at:
        mixed.models, mixed.models_status = serving("m"), 500
        response = await at.register("mixed", mixed, model="")
        assert (response.status_code, "/v1/models answers 500" in response.text) == (400, True)
        mixed.models_status = 200
        await at.admit("mixed", mixed, model="")
        assert await models(at) == ["m"]


async def test_a_registered_engine_that_comes_back_by_its_health_is_asked_again():
    async with engine() as mixed, running(limits=quick(probe_interval=1000.0)) as at:
        mixed.models = serving("m")
        await at.admit("mixed", mixed, model="")
        instance = at.router.registry.instances[mixed.key]
        mixed.models = serving("n")
        at.router.registry.take_out(instance, "it hung")
        await until(lambda: instance.live, "it to be found healthy again")
        assert await models(at) == ["n"]
        await at.admit("mixed", mixed, model="")
        assert await models(at) == ["n"]
