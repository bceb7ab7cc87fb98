"""Killing anything leaves no orphan: launcher, agent, guardian, and both at once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.agent import guardian
from pdctl.agent import lock as lock_module
from pdctl.agent import sweep as sweep_module
from pdctl.agent.lock import take_lock
from pdctl.agent.procfs import boot_id
from tests.agent.agent_harness import ESCAPING, Agent, Events, all_escaped, eventually, is_alive, living, python

WAIT = "\nimport time; time.sleep(1000)"
STUBBORN = "import signal\nsignal.signal(15, signal.SIG_IGN)\n"


async def start_escaping(agent: Agent, *, grace: float = 5.0) -> list[int]:
    """Start a process whose descendants have left its session, group and tags; the pids of all of them."""
    events: Events = await agent.events()
    started = await (await agent.connect()).call(
        "start", name="p", argv=python(STUBBORN + ESCAPING + WAIT), env={}, grace=grace
    )
    return [started["pid"], *await all_escaped(events)]


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def all_dead(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


async def test_agent_killed(agent: Agent) -> None:
    pids = [*await start_escaping(agent), agent.guardian_pid]
    kill(agent.pid)
    eventually(lambda: all_dead(pids), "the end of the processes and of the guardian")
    assert not (agent.folder / "agent.json").exists()


async def test_guardian_killed(agent: Agent) -> None:
    """The agent gives its processes their grace, then it ends too."""
    pids = [*await start_escaping(agent, grace=0.1), agent.pid]
    kill(agent.guardian_pid)
    eventually(lambda: all_dead(pids), "the end of the processes and of the agent")
    assert not (agent.folder / "agent.json").exists()


async def test_guardian_killed_then_agent(agent: Agent) -> None:
    """What was never sampled and carries no tag is out of reach then: here all was sampled."""
    pids = await start_escaping(agent, grace=100)
    sampled(agent, pids)
    agent_pid = agent.pid
    kill(agent.guardian_pid, agent_pid)
    eventually(lambda: not is_alive(agent_pid), "the end of the agent")
    eventually(lambda: not is_alive(pids[0]), "the direct child's end by the kernel")
    assert any(map(is_alive, pids))
    result = agent.sweep()
    assert result["left"] == []
    assert {process["pid"] for process in result["killed"]} == set(pids[1:])
    assert all_dead(pids)


def sampled(agent: Agent, pids: list[int]) -> None:
    path = agent.folder / "pids.json"
    eventually(
        lambda: path.exists() and set(pids) <= {pid for pid, _ in json.loads(path.read_text())["pids"]}, "a sample"
    )


async def test_sweep_finds_by_tag_alone(agent: Agent) -> None:
    pids = await start_escaping(agent, grace=100)
    kill(agent.guardian_pid, agent.pid)
    eventually(lambda: not is_alive(pids[0]), "the direct child's end by the kernel")
    (agent.folder / "pids.json").unlink(missing_ok=True)
    agent.sweep()
    assert living(agent.run_id) == []
    kill(*filter(is_alive, pids))  # the one without tags, which nothing knows of any more


async def test_sweep_ends_a_live_agent_and_what_it_runs(agent: Agent) -> None:
    pids = [*await start_escaping(agent), agent.pid, agent.guardian_pid]
    assert agent.sweep(wait_s=0)["left"] == []
    assert all_dead(pids)


async def test_sweep_ends_an_agent_that_hangs(agent: Agent) -> None:
    pids = [*await start_escaping(agent), agent.pid, agent.guardian_pid]
    os.kill(agent.pid, signal.SIGSTOP)
    assert agent.sweep(wait_s=0.2)["left"] == []
    assert all_dead(pids)


async def test_sweep_of_a_run_that_never_was(idle_agent: Agent) -> None:
    assert idle_agent.sweep() == {"killed": [], "left": [], "agent_lives": False}


async def test_sweep_leaves_a_live_agent_alone_unless_forced(agent: Agent) -> None:
    pids = [*await start_escaping(agent), agent.pid, agent.guardian_pid]
    os.kill(agent.pid, signal.SIGSTOP)
    assert agent.sweep(wait_s=0.2, force=False) == {"killed": [], "left": [], "agent_lives": True}
    os.kill(agent.pid, signal.SIGCONT)
    assert all(map(is_alive, pids))


async def test_sweep_leaves_other_runs_alone(agent: Agent) -> None:
    pids = await start_escaping(agent)
    other = Agent(agent.folder.with_name("other"), "test-other-run")
    assert other.sweep()["killed"] == []
    assert all(map(is_alive, pids))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def record(agent: Agent, pid: int, **changes: object) -> None:
    agent.folder.mkdir()
    start = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    content = {"run_id": agent.run_id, "boot_id": boot_id(), "pids": [[pid, start]]} | changes
    (agent.folder / "pids.json").write_text(json.dumps(content))


def test_what_was_recorded_is_ended(idle_agent: Agent, bystander: subprocess.Popen[bytes]) -> None:
    record(idle_agent, bystander.pid)
    assert [process["pid"] for process in idle_agent.sweep()["killed"]] == [bystander.pid]
    assert bystander.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("changes", [{"boot_id": "another"}, {"run_id": "another"}])
def test_pids_of_another_boot_or_run_mean_nothing(
    idle_agent: Agent, bystander: subprocess.Popen[bytes], changes: dict[str, object]
) -> None:
    record(idle_agent, bystander.pid, **changes)
    assert idle_agent.sweep()["killed"] == []
    assert bystander.poll() is None


def test_a_pid_that_is_used_again_is_not_killed(idle_agent: Agent, bystander: subprocess.Popen[bytes]) -> None:
    record(idle_agent, bystander.pid, pids=[[bystander.pid, 1]])
    assert idle_agent.sweep()["killed"] == []
    assert bystander.poll() is None


def test_a_damaged_record_does_not_keep_a_sweep_from_its_end(idle_agent: Agent) -> None:
    idle_agent.folder.mkdir()
    (idle_agent.folder / "pids.json").touch()
    assert idle_agent.sweep() == {"killed": [], "left": [], "agent_lives": False}
    assert not (idle_agent.folder / "pids.json").exists()


def test_no_agent_begins_in_a_folder_that_is_being_swept(
    idle_agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be taken for those of the run that is swept."""
    removed: list[bool] = []

    def remove(folder: Path, run_id: str) -> None:
        removed.append(take_lock(folder, 0) is None)

    idle_agent.folder.mkdir()
    monkeypatch.setattr(sweep_module, "_remove_files", remove)
    sweep_module.sweep(idle_agent.folder, idle_agent.run_id, 0, force=False)
    assert removed == [True]
    lock = take_lock(idle_agent.folder, 0)
    assert lock is not None
    os.close(lock)


def test_an_agent_waits_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = take_lock(tmp_path, 0)
    assert held is not None
    monkeypatch.setattr(lock_module.time, "sleep", lambda _: os.close(held))  # the sweep ends as it is waited for
    guardian._hold_lock(tmp_path)
    monkeypatch.undo()
    assert take_lock(tmp_path, 0) is None


@pytest.mark.parametrize("who", ["guardian", "agent"])
async def test_sigterm_to_either_ends_all_in_order(agent: Agent, who: str) -> None:
    pids = [*await start_escaping(agent, grace=0.1), agent.pid, agent.guardian_pid]
    os.kill(agent.guardian_pid if who == "guardian" else agent.pid, signal.SIGTERM)
    eventually(lambda: all_dead(pids), "the end of everything")
    assert "0 processes left" in (agent.folder / "agent.log").read_text()


async def test_launcher_killed(idle_agent: Agent) -> None:
    launch_and_kill(idle_agent)
    pids = await start_escaping(idle_agent)
    assert all(map(is_alive, pids))
    idle_agent.sweep(wait_s=0)


def launch_and_kill(agent: Agent) -> None:
    """The agent is no descendant of what starts it, and keeps none of its files open."""
    serve = [sys.executable, "-m", "pdctl.agent", "serve", "--detach", "--dir", str(agent.folder)]
    code = f"""
import subprocess, time
subprocess.run({[*serve, "--run-id", agent.run_id]!r}, check=True)
print("up", flush=True)
time.sleep(1000)
"""
    environment = {**os.environ, "PDCTL_RUN": agent.run_id}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"up\n"
        os.killpg(launcher.pid, signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL
        assert launcher.stdout.read() == b""  # the end of the pipe: nobody else holds it


async def test_processes_forking_without_end_are_ended(agent: Agent) -> None:
    """Each lives for a moment and leaves a child: whoever looks once sees only the past."""
    code = "import os, time\nprint('up', flush=True)\nwhile True:\n    if os.fork(): os._exit(0)\n    time.sleep(0.005)"
    events = await agent.events()
    client = await agent.connect()
    shell = ["sh", "-c", 'exec 3>&1; "$@" & sleep 1000', "sh", *python(code)]
    await client.call("start", name="p", argv=shell, env={})
    await events.until_line("up")
    await client.call("stop", name="p", grace_s=1)
    assert [process for process in living(agent.run_id) if process.pid not in (agent.pid, agent.guardian_pid)] == []
