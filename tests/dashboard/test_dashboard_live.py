"""What the dashboard looks at, with real agents and processes that compute nothing."""

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest

from pdctl.dashboard.live import CommandError, LiveDeployment, run_pdctl
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import NotFoundError
from tests.deployment.conftest import folder, runtime  # noqa: F401
from tests.deployment.deployment_harness import make_plan, started

TIMEOUT_S = 20


class Reader:
    """The lines that a live deployment gives."""

    def __init__(self, live: LiveDeployment) -> None:
        self.lines: list[tuple[str, str]] = []
        self._live = live
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in self._live.logs(follow=True, tail=100):
            self.lines.append((line.process, line.text))

    async def until(self, wanted: tuple[str, str], times: int = 1) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.lines.count(wanted) < times:
                await self._live.status()  # which finds out whether there is another run or plan
                await asyncio.sleep(0.02)


@pytest.fixture
async def running(folder: DeploymentFolder) -> AsyncIterator[DeploymentFolder]:  # noqa: F811
    """The folder of a deployment that runs."""
    async with started(folder, make_plan()):
        yield folder


async def test_another_run_and_another_plan_are_followed(folder: DeploymentFolder) -> None:  # noqa: F811
    async with started(folder, make_plan()):
        live = LiveDeployment(folder)
        reader = Reader(live)
        await reader.until(("decode-0", "decode begins"))
        assert [process.name for process in (await live.status()).processes] == ["router", "prefill-0", "decode-0"]
        assert live.plan() == folder.read_plan()
    assert (await live.status()).state == "down"
    async with started(folder, make_plan(decode=2)):
        await reader.until(("decode-1", "decode begins"))
        await reader.until(("decode-0", "decode begins"), times=2)
        status = await live.status()
        assert [process.name for process in status.processes] == ["router", "prefill-0", "decode-0", "decode-1"]
        assert status.state == "ready"
        plan = folder.read_plan()
        changed = plan.model_copy(update={"engines": plan.engines[:-1]})
        folder.write_plan(changed)  # as a change of the running deployment does
        assert [process.name for process in (await live.status()).processes] == ["router", "prefill-0", "decode-0"]
        assert live.plan() == changed
        folder.write_plan(plan)
    await reader.until(("decode-0", "told to stop"), times=2)
    assert reader.lines.count(("decode-0", "decode begins")) == 2  # once for each run
    reader.task.cancel()
    await live.close()


async def test_what_a_command_fails_with_is_its_error_line(folder: DeploymentFolder) -> None:  # noqa: F811
    with pytest.raises(CommandError, match=r"^there is no deployment 'd' here, only: none$"):
        await run_pdctl("restart", "decode-0", "--name", "d", state_root=str(folder.path.parent))


async def test_a_command_goes_on_when_the_view_is_gone(running: DeploymentFolder) -> None:
    def child() -> psutil.Process | None:
        return next((c for c in psutil.Process().children() if "--watch" in c.cmdline()), None)

    command = asyncio.create_task(run_pdctl("status", "--watch", "--name", "d", state_root=str(running.path.parent)))
    async with asyncio.timeout(TIMEOUT_S):
        while (process := child()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert process.is_running()
    assert process.status() != psutil.STATUS_ZOMBIE
    process.kill()
    process.wait(TIMEOUT_S)


async def test_a_deployment_that_was_never_started(folder: DeploymentFolder) -> None:  # noqa: F811
    with pytest.raises(NotFoundError, match="there is no deployment 'd'"):
        LiveDeployment(folder)
