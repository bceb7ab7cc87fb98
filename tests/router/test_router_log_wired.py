"""The access log of a router: one line for each request, whatever became of it."""

import asyncio
import json
import signal
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from router_mocks import ANSWER, CHAT, PROMPT, Turn, drop, engine, hold, running, split, until
from router_processes import process, ready

from pdctl.errors import ExitCode
from pdctl.router.access.api_keys import ApiKey, ApiKeys, load_api_keys


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.jsonl"


async def written(log: Path, count: int = 1) -> list[dict[str, Any]]:
    """The lines, when there are so many."""
    await until(lambda: log.exists() and log.read_text().count("\n") >= count, f"{count} lines")
    lines = parsed(log)
    assert len(lines) == count
    return lines


def parsed(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def test_a_request_that_a_pair_served(log: Path):
    async def stream(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"choices": [{"index": 0, "text": "Paris"}]})
        usage = {"prompt_tokens": 9, "completion_tokens": 7}
        await turn.event({"choices": [], "usage": usage})
        await turn.event(b"[DONE]")
        await turn.end_stream()

    async with split(on_decode=stream, access_log=str(log)) as pair:
        response = await pair.at.post(PROMPT | {"stream": True}, {"X-Request-Id": "mine"})
        assert response.status_code == 200
        [line] = await written(log)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 60
        assert line["duration_ms"] >= line["ttft_ms"] > 0, "in parts of a millisecond"
        assert line["bytes"] >= len(response.content)
        assert line["client"].startswith("127.0.0.1:")
        kept = ("id", "route", "model", "status", "outcome", "prefill", "decode", "protocol", "stream")
        assert {name: line[name] for name in kept} == {
            "id": "mine",
            "route": CHAT,
            "model": "m",
            "status": 200,
            "outcome": "ok",
            "prefill": pair.prefill.key,
            "decode": pair.decode.key,
            "protocol": "fastdeploy",
            "stream": True,
        }
        assert line["completion_tokens"] == 7
        assert line["prompt_tokens"] > 0
        assert not {"attempts", "resumed", "key", "error"} & line.keys(), "what is as usual is left out"


async def test_a_retry_and_the_keys_name(log: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PDCTL_API_KEY", "sk-1")
    async with (
        engine(drop) as broken,
        engine() as good,
        running(access_log=str(log), api_keys=load_api_keys(None), mixed_policy="round_robin") as at,
    ):
        for mock in (broken, good):
            await at.admit("mixed", mock)
        response = await at.post(headers={"Authorization": "Bearer sk-1"})
        assert response.json() == ANSWER
        [line] = await written(log)
        assert (line["status"], line["outcome"], line["key"], line["decode"]) == (200, "ok", "default", good.key)
        assert line.get("attempts", 1) == (2 if broken.turns.qsize() else 1)


async def test_what_failed_and_why(log: Path):
    async with engine(drop) as mixed, running(access_log=str(log)) as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 502
        [line] = await written(log)
        assert (line["status"], line["outcome"], line["decode"]) == (502, "failed", mixed.key)
        assert mixed.url in line["error"]


async def test_a_stream_that_broke(log: Path):
    async def break_off(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"n": 1})
        turn.drop()

    async with engine(break_off) as mixed, running(access_log=str(log)) as at:
        await at.admit("mixed", mixed)
        with pytest.raises(httpx.RemoteProtocolError):
            await at.post()
        [line] = await written(log)
        assert (line["status"], line["outcome"]) == (200, "broken")
        assert mixed.url in line["error"]


async def test_a_client_that_left(log: Path):
    async with engine(hold) as mixed, running(access_log=str(log)) as at:
        await at.admit("mixed", mixed)
        request = asyncio.create_task(at.post())
        await mixed.turn()
        request.cancel()
        [line] = await written(log)
        assert (line["status"], line["outcome"]) == (499, "client_left")


async def test_what_was_refused(log: Path):
    keys = ApiKeys([ApiKey(0, "bob", sha256(b"sk-bob").digest(), requests_per_minute=1)])
    async with engine() as mixed, running(access_log=str(log), api_keys=keys) as at:
        bob = {"Authorization": "Bearer sk-bob", "X-Request-Id": "bobs"}
        assert (await at.post()).status_code == 401
        assert (await at.post([], bob)).status_code == 400
        assert (await at.post(headers=bob)).status_code == 503, "there is no engine"
        assert (await at.post(headers=bob)).status_code == 429
        lines = await written(log, 4)
        assert [(line["status"], line["id"], line["outcome"]) for line in lines] == [
            (401, "", "refused"),
            (400, "", "refused"),
            (503, "bobs", "refused"),
            (429, "bobs", "refused"),
        ]
        assert lines[2]["error"] == "no mixed instance is registered"
        assert "sk-" not in str(lines)
        await at.http.get("/health")
        await at.http.get("/v1/models", headers=bob)
        assert mixed.turns.empty()
    assert len(await written(log, 4)) == 4, "only requests for engines are written"


async def test_the_last_lines_are_written(log: Path):
    async with engine() as mixed, ready("--access-log", str(log)) as router:
        await router.register("mixed", mixed)
        async with router.http() as http:
            for _ in range(3):
                await http.post(CHAT, json=PROMPT)
            router.kill()
            assert await router.exit() == 0
        assert len(parsed(log)) == 3


async def test_one_process_alone_reopens_it(log: Path):
    async with engine() as mixed, ready("--access-log", str(log)) as router, router.http() as http:
        await router.register("mixed", mixed)
        await http.post(CHAT, json=PROMPT)
        await written(log)
        log.rename(log.with_suffix(".1"))  # noqa: ASYNC240
        router.kill(signal.SIGHUP)
        await until(log.exists, "a new file")
        await http.post(CHAT, json=PROMPT)
        await written(log)
        assert router.process.returncode is None


async def test_a_file_that_cannot_be_written(tmp_path: Path):
    async with process("--access-log", str(tmp_path)) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert router.log.count("\n") == 1
        assert f"access log {tmp_path}: cannot be opened: Is a directory" in router.log
