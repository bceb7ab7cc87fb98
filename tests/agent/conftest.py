from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.agent_harness import Agent, living, new_run_id
from tests.processes import kill_all


@pytest.fixture
async def idle_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """An agent that was not started yet; in the end, nothing that carries its run's tag may live."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    agent = Agent(tmp_path / "agent", new_run_id())
    yield agent
    await agent.close()
    left = living(agent.run_id)
    kill_all(left)
    assert not left, f"left behind: {left}"


@pytest.fixture
async def agent(idle_agent: Agent) -> AsyncIterator[Agent]:
    """A running agent, that is shut down in the end if it still runs."""
    await idle_agent.start()
    yield idle_agent
    idle_agent.sweep(wait_s=0)
