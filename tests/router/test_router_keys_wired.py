"""API keys at a router: what needs one, what a request without one gets, and limits that all workers keep together."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from router_mocks import ANSWER, CHAT, PROMPT, engine, running, until
from router_processes import listening, process, ready, to_each_worker

from pdctl.deployment.verify import Engine, Pair, verify
from pdctl.errors import ExitCode
from pdctl.profiles import WarmUp
from pdctl.router.access.api_keys import ApiKeys, load_api_keys

ALICE, BOB = {"Authorization": "Bearer sk-alice"}, {"Authorization": "bearer sk-bob"}
KEYS = """
keys:
  - {name: alice, key: sk-alice, requests_per_minute: 4, tokens_per_minute: 100000}
  - {name: bob, key: sk-bob}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS)
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(file: Path) -> ApiKeys:
    keys = load_api_keys(file)
    assert keys is not None
    return keys


def is_refused(response: httpx.Response) -> bool:
    if response.status_code != 401:
        return False
    assert response.json() == {
        "error": {
            "message": "an API key is needed: Authorization: Bearer KEY",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
    assert response.headers["www-authenticate"] == "Bearer"
    return True


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-eve"}, {"Authorization": "sk-bob"}])
async def test_a_request_without_a_key_that_is_known(keys: ApiKeys, headers: dict[str, str]):
    async with engine() as mixed, running(api_keys=keys) as at:
        await at.admit("mixed", mixed)
        assert is_refused(await at.post(headers=headers))
        assert mixed.turns.empty()


async def test_what_needs_a_key(keys: ApiKeys):
    async with engine() as mixed, running(api_keys=keys) as at:
        await at.admit("mixed", mixed)
        for path in ("/v1/models", "/v1/models/m", "/health_generate"):
            assert is_refused(await at.http.get(path)), path
            assert (await at.http.get(path, headers=BOB)).status_code == 200, path
        for path in ("/health", "/health/live", "/metrics", "/registered", "/instances"):
            assert (await at.http.get(path)).status_code == 200, path
        assert (await at.post(headers=BOB)).json() == ANSWER


async def test_the_key_goes_on_to_the_engine(keys: ApiKeys):
    async with engine() as mixed, running(api_keys=keys) as at:
        await at.admit("mixed", mixed)
        await at.post(headers=BOB)
        assert (await mixed.turn()).headers["authorization"] == "bearer sk-bob"


async def test_the_deployments_token_does_instead_of_a_key(keys: ApiKeys):
    async with engine() as mixed, running(api_keys=keys, token="secret") as at:
        await at.admit("mixed", mixed)
        assert (await at.post(headers={"X-Pdctl-Token": "secret"})).status_code == 200
        assert is_refused(await at.post(headers={"X-Pdctl-Token": "wrong"}))


@pytest.mark.parametrize("given", ["", "anything"])
async def test_without_a_token_there_is_none_that_does(keys: ApiKeys, given: str):
    async with engine() as mixed, running(api_keys=keys) as at:
        await at.admit("mixed", mixed)
        assert is_refused(await at.post(headers={"X-Pdctl-Token": given}))


async def test_the_limit_of_requests(keys: ApiKeys):
    async with engine() as mixed, running(api_keys=keys) as at:
        await at.admit("mixed", mixed)
        assert [(await at.post(headers=ALICE)).status_code for _ in range(4)] == [200] * 4
        refused = await at.post(headers=ALICE)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert (await at.post(headers=BOB)).status_code == 200
        assert (await at.http.get("/v1/models", headers=ALICE)).status_code == 200, "which costs nothing"
        page = (await at.http.get("/metrics")).text
        assert 'pdctl_router_rate_limited_total{key="alice"} 1\n' in page
        assert mixed.turns.qsize() == 5


async def test_the_limit_of_tokens_counts_prompts_and_answers(tmp_path: Path):
    def answer_of(tokens: int) -> dict[str, Any]:
        return ANSWER | {"usage": {"prompt_tokens": 1, "completion_tokens": tokens}}

    path = tmp_path / "keys.yaml"
    path.write_text("keys: [{name: a, key: k, tokens_per_minute: 100}]")
    path.chmod(0o600)
    headers = {"Authorization": "Bearer k"}

    async def long_answer(turn: Any) -> None:
        await turn.answer(answer_of(95))

    async with engine(long_answer) as mixed, running(api_keys=load_api_keys(path)) as at:
        await at.admit("mixed", mixed)
        assert (await at.post(headers=headers)).status_code == 200
        assert (await at.post(headers=headers)).status_code == 429, "95 were generated"
        too_long = await at.post(PROMPT | {"messages": [{"role": "user", "content": "x" * 1000}]}, headers=headers)
        assert too_long.status_code == 400, "it can never be served"
        assert too_long.json()["error"]["code"] == "rate_limit_exceeded"


async def test_workers_keep_a_limit_together_and_after_a_workers_death(file: Path):
    flags = ("--workers", "2", "--api-key", str(file))
    async with engine() as mixed, ready(*flags) as router, to_each_worker(router) as each:
        file.unlink()  # noqa: ASYNC240 - a new worker is told the keys
        assert "PDCTL_TOKEN_FILE is not set: API keys are checked, but anybody may register engines" in await log(
            router
        )
        await router.register("mixed", mixed)
        (dead, one), (_, other) = each.clients.items()
        sent = [http.post(CHAT, json=PROMPT, headers=ALICE) for http in (one, other, one)]
        assert [(await request).status_code for request in sent] == [200] * 3
        next(worker for worker in router.workers() if worker.pid == dead).kill()
        await router.wait_for_log("has died (SIGKILL)")
        assert (await other.post(CHAT, json=PROMPT, headers=ALICE)).status_code == 200
        assert (await other.post(CHAT, json=PROMPT, headers=ALICE)).status_code == 429
        await until(lambda: len(listening(router)) == 2, "another worker")
        async with to_each_worker(router) as both:
            assert [(await http.post(CHAT, json=PROMPT, headers=ALICE)).status_code for http in both] == [429, 429]
            assert [(await http.post(CHAT, json=PROMPT, headers=BOB)).status_code for http in both] == [200, 200]


async def log(router: Any) -> str:
    await router.wait_for_log("listening on")
    return router.log


async def test_a_deployment_is_verified_through_a_router_with_keys(tmp_path: Path, file: Path):
    token = tmp_path / "token"
    token.write_text("secret")
    flags, env = ("--workers", "2", "--api-key", str(file), "--splitwise"), {"PDCTL_TOKEN_FILE": str(token)}
    async with engine() as prefill, engine() as decode, ready(*flags, env=env) as router, router.http() as http:
        for role, mock in (("prefill", prefill), ("decode", decode)):
            assert (await router.register(role, mock)).status_code == 401
            assert (await router.register(role, mock, "secret", model="m")).status_code == 200
        pair = Engine("prefill-0", prefill.url, "m"), Engine("decode-0", decode.url, "m")
        await verify(http, str(http.base_url).rstrip("/"), "secret", [Pair(*pair)], WarmUp())
        assert is_refused(await http.post(CHAT, json=PROMPT))
        for call in (http.post(f"/instances/{prefill.key}/drain"), http.delete(f"/instances/{prefill.key}")):
            assert (await call).status_code == 401
        assert (await http.post("/v1/abort_requests", json={"abort_all": True}, headers=BOB)).status_code == 401
        assert "PDCTL_TOKEN_FILE is not set" not in await log(router)
        assert "secret" not in router.log


async def test_keys_that_cannot_be_used_are_refused_by_one_line(tmp_path: Path):
    file = tmp_path / "keys.yaml"
    async with process("--api-key", str(file)) as router:
        assert await router.exit() != ExitCode.OK
        assert router.log.count("\n") == 1
        assert str(file) in router.log


async def test_one_key_from_the_environment():
    async with engine() as mixed, ready("--workers", "2", env={"PDCTL_API_KEY": "sk-only"}) as router:
        await router.register("mixed", mixed)
        async with to_each_worker(router) as each:
            for http in each:
                assert is_refused(await http.post(CHAT, json=PROMPT))
                answer = await http.post(CHAT, json=PROMPT, headers={"Authorization": "Bearer sk-only"})
                assert answer.json() == ANSWER
