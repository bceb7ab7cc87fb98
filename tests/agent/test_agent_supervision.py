"""Processes under an agent: start, notices, exits, figures, stop."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from pdctl.hosts.client import AgentCallError
from tests.agent.agent_harness import (
    ESCAPING,
    Agent,
    Events,
    all_escaped,
    eventually,
    eventually_async,
    is_alive,
    python,
)

NOTIFY = (
    "import os, json\ndef notify(**e): os.write(int(os.environ['PDCTL_NOTIFY_FD']), json.dumps(e).encode() + b'\\n')\n"
)
WAIT = "\nimport time; time.sleep(1000)"


async def run(agent: Agent, argv: list[str], name: str = "p", **params: object) -> Events:
    events = await agent.events()
    client = await agent.connect()
    await client.call("start", name=name, argv=argv, env={}, **params)
    return events


async def test_an_exit_is_reported_with_code_and_last_lines(agent: Agent) -> None:
    code = "import sys\nfor i in range(30): print(i)\nprint('last words', file=sys.stderr)\nsys.exit(7)"
    events = await run(agent, python(code))
    exited = await events.until_state("p", "exited")
    assert exited["exit_code"] == 7
    assert exited["last_lines"] == [str(i) for i in range(11, 30)] + ["last words"]


async def test_a_death_by_signal_is_told_as_such(agent: Agent) -> None:
    events = await run(agent, python("import os; os.kill(os.getpid(), 9)"))
    assert (await events.until_state("p", "exited"))["exit_code"] == -signal.SIGKILL


async def test_a_command_that_does_not_exist(agent: Agent) -> None:
    events = await run(agent, ["no-such-command"])
    exited = await events.until_state("p", "exited")
    assert exited["exit_code"] == 127
    assert exited["last_lines"] == ["pdctl: cannot run no-such-command: No such file or directory"]


async def test_notices_become_progress_ports_and_ready(agent: Agent) -> None:
    code = NOTIFY + (
        "notify(event='progress', step='weights', done=1, total=2)\n"
        "notify(event='listening', ports={'api': 31000})\nnotify(event='listening', ports={'metrics': 31001})\n"
        "notify(event='ready')"
    )
    events = await run(agent, python(code + WAIT))
    ready = await events.until_state("p", "ready")
    assert ready["progress"] == {"step": "weights", "done": 1, "total": 2}
    assert ready["ports"] == {"api": 31000, "metrics": 31001}


async def test_a_damaged_notice_is_a_warning(agent: Agent) -> None:
    code = NOTIFY + "os.write(int(os.environ['PDCTL_NOTIFY_FD']), b'rubbish\\n')\nnotify(event='ready')"
    events = await run(agent, python(code + WAIT))
    assert "rubbish" in (await events.until_state("p", "ready"))["warning"]


async def test_environment_folder_and_signals_of_a_process(agent: Agent, tmp_path: Path) -> None:
    code = (
        "import os, json, signal\nprint(json.dumps([os.environ['PDCTL_RUN'], os.environ['PDCTL_PROCESS'], os.getcwd(),"
        "os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGINT) == signal.default_int_handler]))"
    )
    events = await run(agent, python(code), cwd=str(tmp_path))
    exited = await events.until_state("p", "exited")
    assert json.loads(exited["last_lines"][0]) == [agent.run_id, "p", str(tmp_path), True, True]


async def test_no_file_of_the_agent_is_open_in_a_process(agent: Agent) -> None:
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    events = await run(agent, [sys.executable, "-S", "-c", code])
    exited = await events.until_state("p", "exited")
    assert len(json.loads(exited["last_lines"][0].replace("'", '"'))) == 5  # 0, 1, 2, notices, the listing itself


async def test_stop_lets_a_process_end_by_itself(agent: Agent) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint('up', flush=True)" + WAIT
    events = await run(agent, python(code))
    await events.until_line("up")
    stopped = await (await agent.connect()).call("stop", name="p", grace_s=20)
    assert stopped["exit_code"] == 3


async def test_stop_kills_a_process_that_ignores_sigterm(agent: Agent) -> None:
    code = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)" + WAIT
    events = await run(agent, python(code))
    await events.until_line("up")
    stopped = await (await agent.connect()).call("stop", name="p", grace_s=0.1)
    assert stopped["exit_code"] == -signal.SIGKILL
    assert [s["state"] for s in events.states if s["state"] == "stopping"] == []  # not read yet
    await events.until_state("p", "stopping")


async def test_stop_kills_a_process_that_was_stopped_by_a_signal(agent: Agent) -> None:
    events = await run(agent, python("import os; print('up', flush=True); os.kill(os.getpid(), 19)"))
    await events.until_line("up")
    stopped = await (await agent.connect()).call("stop", name="p", grace_s=0.1)
    assert stopped["exit_code"] in (-signal.SIGKILL, -signal.SIGTERM)


async def test_a_second_stop_with_a_shorter_grace_hurries_the_first(agent: Agent) -> None:
    code = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)" + WAIT
    events = await run(agent, python(code))
    await events.until_line("up")
    patient, hasty = await agent.connect(), await agent.connect()
    first = asyncio.create_task(patient.call("stop", name="p", grace_s=1000, timeout_s=1100))
    await events.until_state("p", "stopping")
    assert (await hasty.call("stop", name="p", grace_s=0))["exit_code"] == -signal.SIGKILL
    assert (await first)["exit_code"] == -signal.SIGKILL


async def test_stop_ends_descendants_that_left_session_group_and_parent(agent: Agent) -> None:
    events = await run(agent, python(ESCAPING + WAIT))
    escaped = await all_escaped(events)
    assert all(map(is_alive, escaped))
    await (await agent.connect()).call("stop", name="p", grace_s=5)
    assert not any(map(is_alive, escaped))


async def test_what_a_process_leaves_behind_ends_with_it(agent: Agent) -> None:
    """The untagged descendant is known from the samples that were taken while its parent lived."""
    code = ESCAPING + "\nimport sys; sys.stdin = open(os.environ['GO']); sys.stdin.read()"
    events = await agent.events()
    client = await agent.connect()
    go = agent.folder / "go"
    os.mkfifo(go)
    await client.call("start", name="p", argv=python(code), env={"GO": str(go)})
    escaped = await all_escaped(events)
    eventually(lambda: _recorded(agent, escaped), "a sample of the whole tree")
    go.write_text("")
    await events.until_state("p", "exited")
    eventually(lambda: not any(map(is_alive, escaped)), "the end of what was left behind")


def _recorded(agent: Agent, pids: list[int]) -> bool:
    path = agent.folder / "pids.json"
    return path.exists() and set(pids) <= {pid for pid, _ in json.loads(path.read_text())["pids"]}


async def test_figures_cover_the_whole_tree(agent: Agent) -> None:
    burn = "import subprocess, sys\nblock = bytearray(60_000_000)\nwhile True: pass"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {burn!r}]).wait()"
    await run(agent, python(code))
    client = await agent.connect()

    async def busy() -> bool:
        (process,) = await client.call("list")
        return process["cpu_percent"] > 15 and process["memory_bytes"] > 60_000_000

    await eventually_async(busy, "CPU and memory of a grandchild")


async def test_a_name_is_used_once_at_a_time(agent: Agent) -> None:
    events = await run(agent, python("print('up', flush=True)" + WAIT))
    client = await agent.connect()
    with pytest.raises(AgentCallError, match="p runs already"):
        await client.call("start", name="p", argv=["true"], env={})
    await client.call("stop", name="p", grace_s=5)
    await client.call("start", name="p", argv=python("print('again')"), env={})
    await events.until_line("again")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "agent", "x" * 65])
async def test_a_name_that_cannot_be_a_file_is_refused(agent: Agent, name: str) -> None:
    with pytest.raises(AgentCallError, match="name"):
        await (await agent.connect()).call("start", name=name, argv=["true"], env={})


async def test_a_log_that_cannot_be_written_costs_the_log_only(agent: Agent) -> None:
    (agent.folder / "logs" / "p.log").symlink_to("/dev/full")
    code = "import sys\nprint('one', flush=True)\nopen(sys.argv[1]).read()\nprint('two'); sys.exit(4)"
    go = agent.folder / "go"
    os.mkfifo(go)
    events = await run(agent, [*python(code), str(go)])
    await events.until_line("one")
    warned = await events.until(lambda events: next((s for s in events.states if s["warning"]), None))
    assert "No space left on device" in warned["warning"]
    assert warned["state"] == "starting"
    go.write_text("")
    exited = await events.until_state("p", "exited")
    assert (exited["exit_code"], exited["last_lines"]) == (4, ["one", "two"])


async def test_a_log_that_could_not_be_written_is_continued(agent: Agent) -> None:
    log = agent.folder / "logs" / "p.log"
    log.symlink_to("/dev/full")
    events = await run(
        agent, python("import time, itertools\nfor i in itertools.count(): print(i, flush=True); time.sleep(0.1)")
    )
    await events.until(lambda events: any(s["warning"] for s in events.states))
    log.unlink()
    await events.until(lambda events: events.states[-1]["warning"] is None)
    assert "lines lost" in log.read_text()


async def test_logs_are_there_while_and_after_the_process_lives(agent: Agent) -> None:
    events = await run(agent, python("print('a'); print('b')"))
    await events.until_state("p", "exited")
    client = await agent.connect()
    answer = await client.call("logs", names=["p"], tail=1)
    assert [text for _, _, text in answer["lines"]] == ["b"]


async def test_shutdown_ends_all_processes_and_then_the_agent(agent: Agent) -> None:
    events = await run(agent, python(ESCAPING + WAIT), name="a")
    await run(agent, python("print('up', flush=True)" + WAIT), name="b")
    escaped = await all_escaped(events)
    pids = [agent.pid, agent.guardian_pid]
    await (await agent.connect()).call("shutdown", grace=5)
    assert not any(map(is_alive, escaped))
    eventually(lambda: not any(map(is_alive, pids)), "the end of agent and guardian")
    assert not (agent.folder / "agent.json").exists()
    assert "0 processes left" in (agent.folder / "agent.log").read_text()
