"""Of which run the files of an agent's folder are: an agent that comes too late is refused, and old lines stay out."""

import time
from pathlib import Path

import pytest

from pdctl.agent import logs
from pdctl.agent.paths import AgentError
from pdctl.agent.run_record import began, begin_run, end_run
from pdctl.agent.sweep import sweep
from pdctl.hosts.host import HostError
from pdctl.hosts.open import open_host
from tests.agent.agent_harness import Agent, living


async def test_no_agent_begins_after_its_run_was_ended_for_good(idle_agent: Agent) -> None:
    """Even where none had come so far as to make the folder."""
    host = open_host("here")
    swept = await host.sweep(idle_agent.folder, idle_agent.run_id, 0, force=True, for_good=True)
    assert (swept.left, swept.agent_lives) == ([], False)
    with pytest.raises(HostError, match=f"run {idle_agent.run_id} was ended before its agent began"):
        await idle_agent.start()
    assert living(idle_agent.run_id) == []


def test_a_sweep_that_is_not_for_good_lets_the_run_go_on(tmp_path: Path) -> None:
    begin_run(tmp_path, "run")
    sweep(tmp_path, "run", 0, force=True)
    begin_run(tmp_path, "run")


def test_the_next_run_begins(tmp_path: Path) -> None:
    end_run(tmp_path, "run")
    with pytest.raises(AgentError):
        begin_run(tmp_path, "run")
    begin_run(tmp_path, "next")
    assert began(tmp_path, "next") is not None
    assert began(tmp_path, "run") is None


def test_when_a_run_began_is_known_after_its_end(tmp_path: Path) -> None:
    begin_run(tmp_path, "run")
    at = began(tmp_path, "run")
    assert at is not None
    assert abs(at - time.time()) < 60
    end_run(tmp_path, "run")
    assert began(tmp_path, "run") == at


def test_a_damaged_record_keeps_no_agent_from_beginning(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    assert began(tmp_path, "run") is None
    begin_run(tmp_path, "run")


async def test_lines_of_other_runs_are_left_out(tmp_path: Path) -> None:
    log = logs.RotatingLog(logs.log_path(tmp_path, "engine"))
    (tmp_path / "logs").mkdir()
    log.write([logs.Line(logs.now(), "of the run before")])
    begin_run(tmp_path, "run")
    log.write([logs.Line(logs.now(), "of the run")])
    log.close()
    read = open_host("here").read_logs
    assert [line.text for line in await read(tmp_path, [], 10, "run")] == ["of the run"]
    assert await read(tmp_path, [], 10, "another") == []
    assert len(await read(tmp_path, [], 10)) == 2


def test_times_of_lines_do_not_go_by_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logs.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= logs.now() - before < 60
