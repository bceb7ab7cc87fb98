"""Logs: what was written and what is being written, without a gap, a line twice, or a line of an earlier start."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from pdctl.deployment.apply import prepare
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.follow import merged
from pdctl.deployment.launch import launch
from pdctl.deployment.models import LogLine
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import NotFoundError
from tests.deployment.deployment_harness import make_plan

COUNT = 3000


@pytest.fixture
async def deployment(folder: DeploymentFolder) -> AsyncIterator[Deployment]:
    deployment = prepare(make_plan(), folder)
    await launch(deployment)
    yield deployment
    await stop_deployment(deployment)
    await deployment.close()


async def lines(deployment: Deployment, *processes: str, tail: int = 100) -> list[tuple[str, str]]:
    return [(line.process, line.text) async for line in deployment.logs(processes, tail=tail)]


async def test_of_all_processes_or_of_some(deployment: Deployment) -> None:
    begins = [("router", "router begins"), ("prefill-0", "prefill begins"), ("decode-0", "decode begins")]
    assert set(await lines(deployment)) == set(begins)
    assert (await lines(deployment))[0] == begins[0]  # in the order of their time
    assert await lines(deployment, "decode-0") == begins[2:]
    assert await lines(deployment, "decode-0", tail=0) == []
    with pytest.raises(NotFoundError, match="no process 'decode-1', only router, prefill-0, decode-0"):
        await lines(deployment, "decode-1")


async def test_after_death_and_not_those_of_an_earlier_start(deployment: Deployment) -> None:
    await stop_deployment(deployment)
    assert ("decode-0", "told to stop") in await lines(deployment)
    again = prepare(make_plan(), deployment.folder)
    await launch(again)
    assert await lines(again, "decode-0") == [("decode-0", "decode begins")]
    await again.close()


async def test_following_misses_nothing_and_repeats_nothing(deployment: Deployment) -> None:
    """It begins in the middle of the writing."""
    client = await deployment.client("here")
    code = f"import time\nfor i in range({COUNT}): print(i, flush=True); time.sleep(0.0001)"
    await client.call("stop", name="decode-0", grace_s=5)
    await client.call("start", name="decode-0", argv=[sys.executable, "-S", "-c", code], env={})
    seen: list[str] = []
    async with asyncio.timeout(30):
        async for line in deployment.logs(["decode-0"], tail=10_000, follow=True):
            seen.append(line.text)
            if line.text == str(COUNT - 1):
                break
    assert [text for text in seen if text.isdigit()] == [str(i) for i in range(COUNT)]


async def test_following_ends_with_the_agent(deployment: Deployment) -> None:
    seen: list[str] = []

    async def follow() -> None:
        seen.extend([line.text async for line in deployment.logs(["router"], follow=True)])

    following = asyncio.create_task(follow())
    other = Deployment.attach(deployment.folder)
    await stop_deployment(other)
    await other.close()
    await asyncio.wait_for(following, 20)
    assert seen[0] == "router begins"


async def test_following_begins_before_the_agent_does(folder: DeploymentFolder) -> None:
    deployment = prepare(make_plan(), folder)

    async def first_line() -> str:
        async for line in deployment.logs(follow=True):
            return line.text
        return "none"

    following = asyncio.create_task(first_line())
    await asyncio.sleep(0)
    await launch(deployment)
    assert await asyncio.wait_for(following, 20) == "router begins"
    await stop_deployment(deployment)
    await deployment.close()


async def source(*texts: str, error: Exception | None = None) -> AsyncGenerator[LogLine, None]:
    for text in texts:
        await asyncio.sleep(0)
        yield LogLine(process="p", time=0, text=text)
    if error is not None:
        raise error


async def test_several_sources_become_one() -> None:
    seen = [line.text async for line in merged([source("a", "b"), source(), source("c")])]
    assert sorted(seen) == ["a", "b", "c"]


async def test_a_source_that_fails_is_not_silent() -> None:
    with pytest.raises(ValueError, match="broken"):
        _ = [line async for line in merged([source("a"), source("b", error=ValueError("broken"))])]


async def test_a_reader_that_leaves_ends_the_sources() -> None:
    async def endless() -> AsyncGenerator[LogLine, None]:
        while True:
            yield LogLine(process="p", time=0, text="x")

    lines = merged([endless(), endless()])
    assert (await anext(lines)).text == "x"
    await asyncio.wait_for(lines.aclose(), 5)
    assert len(asyncio.all_tasks()) == 1
