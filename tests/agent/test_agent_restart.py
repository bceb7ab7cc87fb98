"""Supervised processes: they are started again when they end, when they fall silent, and not without end."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pdctl.agent import supervision as supervision_module
from pdctl.agent import supervisor as supervisor_module
from pdctl.agent.backoff import Restart
from pdctl.agent.procfs import Stat
from pdctl.agent.supervision import Look
from pdctl.agent.supervisor import Supervisor
from pdctl.hosts.client import AgentCallError
from tests.agent.agent_harness import ESCAPING, Agent, Events, all_escaped, eventually_async, is_alive, python

SOON = {"backoff_s": 0.01, "max_backoff_s": 0.05}
HASTY = {**SOON, "probe_interval_s": 0.05, "probe_timeout_s": 0.5, "probe_failures": 2}
NOT_NOW = {"backoff_s": 1000, "max_backoff_s": 1000}
HEALTH = "http://127.0.0.1:{api}/health"

WAIT = "print('up', flush=True)\nimport time; time.sleep(1000)"
SERVE = """
import http.server, json, os
def notify(**event): os.write(int(os.environ['PDCTL_NOTIFY_FD']), json.dumps(event).encode() + b'\\n')
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('asked', flush=True)
        self.send_response(int(os.environ['STATUS']))
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
notify(event='listening', ports={'api': server.server_port})
"""
READY = SERVE + "notify(event='ready')\nserver.serve_forever()"


class Supervised:
    """One process of an agent, and what is told of it."""

    def __init__(self, agent: Agent, events: Events, name: str = "p") -> None:
        self.agent = agent
        self.events = events
        self.name = name

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        return await (await self.agent.connect()).call(method, name=self.name, **params)

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next that is told of it and fulfils the condition."""
        begin = len(self.events.states)
        return await self.events.until(lambda events: next(filter(condition, events.states[begin:]), None))

    async def until_state(self, state: str) -> dict[str, Any]:
        return await self.until(lambda process: process["state"] == state)

    async def now(self) -> dict[str, Any]:
        (process,) = await (await self.agent.connect()).call("list")
        return process


async def supervised(
    agent: Agent,
    command: list[str],
    restart: dict[str, Any],
    *,
    environment: dict[str, str] | None = None,
    **params: object,
) -> Supervised:
    """Start a process, and have it supervised once it has written a line or told its port."""
    process = Supervised(agent, await agent.events())
    await process.call("start", argv=command, env={"STATUS": "200", **(environment or {})}, grace=5)
    await process.events.until(lambda events: events.lines or any(state["ports"] for state in events.states))
    await process.call("supervise", restart=restart, **params)
    await process.until_state("ready")
    return process


def kill(process: dict[str, Any], number: int = signal.SIGKILL) -> None:
    os.kill(process["pid"], number)


async def test_a_killed_process_is_started_again(agent: Agent) -> None:
    process = await supervised(agent, python(WAIT), SOON)
    before = await process.now()
    kill(before)
    ended = await process.until_state("restarting")
    assert (ended["exit_code"], ended["last_end"], ended["restarts"]) == (-9, "was killed by SIGKILL", 0)
    assert 0 <= ended["restart_in_s"] <= 0.01
    again = await process.until_state("ready")
    assert again["pid"] != before["pid"]
    assert (again["exit_code"], again["restart_in_s"], again["restarts"]) == (None, None, 1)
    await process.events.until_line("pdctl: p was started again (1): it was killed by SIGKILL")
    assert "exited" not in [state["state"] for state in process.events.states]


@pytest.mark.parametrize(("policy", "code", "state"), [("on-failure", 0, "exited"), ("never", 1, "exited")])
async def test_an_end_that_is_not_followed_by_another_life(agent: Agent, policy: str, code: int, state: str) -> None:
    argv = python(f"import signal, sys\nsignal.signal(10, lambda *_: sys.exit({code}))\n" + WAIT)
    process = await supervised(agent, argv, {**SOON, "policy": policy})
    kill(await process.now(), signal.SIGUSR1)
    ended = await process.until(lambda process: process["exit_code"] is not None)
    assert (ended["state"], ended["exit_code"]) == (state, code)


async def test_always_is_after_success_too(agent: Agent) -> None:
    argv = python("import signal, sys\nsignal.signal(10, lambda *_: sys.exit(0))\n" + WAIT)
    process = await supervised(agent, argv, {**SOON, "policy": "always"})
    kill(await process.now(), signal.SIGUSR1)
    assert (await process.until_state("ready"))["restarts"] == 1


async def test_a_crash_loop_is_left_alone_with_its_last_lines(agent: Agent) -> None:
    code = "import os, sys, time\nprint('life', flush=True)\nif os.path.exists(sys.argv[1]): sys.exit(3)\n"
    mark = agent.folder / "broken"
    process = await supervised(agent, [*python(code + "time.sleep(1000)"), str(mark)], {**SOON, "max_restarts": 2})
    mark.touch()
    kill(await process.now())
    failed = await process.until_state("failed")
    assert (failed["restarts"], failed["exit_code"], failed["last_end"]) == (2, 3, "exited with code 3")
    assert failed["last_lines"][-1] == "life"
    mark.unlink()
    await process.call("stop")
    anew = await process.call("start", argv=python(WAIT), env={})
    assert (anew["state"], anew["restarts"], anew["last_end"]) == ("starting", 0, None)


async def test_lives_leave_nothing_open_in_the_agent(agent: Agent) -> None:
    mark = agent.folder / "broken"
    code = (
        "import os, sys, time\nprint('up', flush=True)\nif not os.path.exists(sys.argv[1]): time.sleep(1000)\nexit(1)"
    )
    restart = {"backoff_s": 0, "max_restarts": 15}
    process = await supervised(agent, [*python(code), str(mark)], restart)
    agent_process = psutil.Process(agent.pid)
    before = agent_process.num_fds()
    mark.touch()
    kill(await process.now())
    await process.until_state("failed")
    await process.call("stop")
    assert agent_process.num_fds() <= before


async def test_a_stable_life_begins_anew(agent: Agent) -> None:
    """Every life here is stable: without that, the second would be the last."""
    process = await supervised(agent, python(WAIT), {**SOON, "max_restarts": 1, "stable_s": 0.001})
    for restarts in (1, 2, 3):
        kill(await process.now())
        again = await process.until_state("ready")
        assert again["restarts"] == restarts


async def test_a_process_that_falls_silent_is_killed(agent: Agent) -> None:
    process = await supervised(agent, python(READY), HASTY, probe_url=HEALTH)
    before = await process.now()
    kill(before, signal.SIGSTOP)
    ended = await process.until_state("restarting")
    assert ended["last_end"] == "did not answer 2 times in a row at /health"
    again = await process.until_state("ready")
    assert again["restarts"] == 1
    assert not is_alive(before["pid"])


async def test_an_answer_that_is_no_success_is_an_answer(agent: Agent) -> None:
    process = await supervised(agent, python(READY), HASTY, environment={"STATUS": "503"}, probe_url=HEALTH)
    await process.events.until(lambda events: events.lines.count(("p", "asked")) >= 5)
    now = await process.now()
    assert (now["state"], now["restarts"]) == ("ready", 0)


async def test_a_process_that_tells_nothing_is_ready_when_it_answers(agent: Agent) -> None:
    process = await supervised(agent, python(SERVE + "server.serve_forever()"), HASTY, probe_url=HEALTH)
    kill(await process.now())
    assert (await process.until_state("starting"))["restarts"] == 1
    await process.until_state("ready")
    await process.events.until_line("asked")


async def test_one_that_was_not_seen_to_serve_is_given_its_time(agent: Agent) -> None:
    """It is not silent: it has not begun to answer. The test answers for it."""
    asked, enough, answer = 0, asyncio.Event(), b""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked > HASTY["probe_failures"] + 2:
            enough.set()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    process = Supervised(agent, await agent.events())
    await process.call("start", argv=python(WAIT), env={})
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
    await process.call("supervise", restart=HASTY, probe_url=url, ready_s=60, serves=False)
    await asyncio.wait_for(enough.wait(), 20)
    assert [(state["state"], state["restarts"]) for state in [await process.now()]] == [("starting", 0)]
    answer = b"HTTP/1.1 200 OK\r\n\r\n"
    assert (await process.until_state("ready"))["restarts"] == 0
    await process.call("stop")
    server.close()


async def test_a_process_that_is_not_ready_in_time_is_killed(agent: Agent) -> None:
    """It never comes to listen: nothing could be asked."""
    mark = agent.folder / "hangs"
    code = "import os, sys, time\nif os.path.exists(sys.argv[1]): time.sleep(1000)\n" + READY
    process = await supervised(agent, [*python(code), str(mark)], HASTY, probe_url=HEALTH, ready_s=0.2)
    mark.touch()
    kill(await process.now())
    ended = await process.until(lambda process: process["restarts"] == 1 and process["state"] == "restarting")
    assert ended["last_end"] == "was not ready within 0.2 s"


async def test_what_is_left_of_a_tree_is_dead_before_the_next_life(agent: Agent) -> None:
    """Each life says whether a process of the one before still lives; the untagged one is known from a sample."""
    known = agent.folder / "known"
    look = "import os, sys\nfor pid in open(sys.argv[1]): print('lives', os.path.exists(f'/proc/{int(pid)}'))\n"
    known.touch()
    process = await supervised(agent, [*python(look + ESCAPING + WAIT), str(known)], SOON)
    escaped = await all_escaped(process.events)
    known.write_text("".join(f"{pid}\n" for pid in escaped))
    recorded = agent.folder / "pids.json"

    async def sampled() -> bool:
        return recorded.exists() and all(f"[{pid}, " in recorded.read_text() for pid in escaped)

    await eventually_async(sampled, "a sample of the whole tree")
    kill(await process.now())
    await process.events.until(lambda events: sum(text.startswith("lives ") for _, text in events.lines) == 3)
    assert [text for _, text in process.events.lines if text.startswith("lives ")] == ["lives False"] * 3


async def test_stop_ends_supervision(agent: Agent) -> None:
    process = await supervised(agent, python(WAIT), {**SOON, "policy": "always"})
    stopped = await process.call("stop")
    assert (stopped["state"], stopped["stopped"], stopped["exit_code"]) == ("exited", True, -signal.SIGTERM)
    assert (await process.call("start", argv=python(WAIT), env={}))["restarts"] == 0


async def test_stop_of_one_that_waits_for_its_next_life(agent: Agent) -> None:
    process = await supervised(agent, python(WAIT), NOT_NOW)
    kill(await process.now())
    waiting = await process.until_state("restarting")
    assert 900 < waiting["restart_in_s"] <= 1000
    with pytest.raises(AgentCallError, match=r"p runs already .*restarting"):
        await process.call("start", argv=["true"], env={})
    stopped = await process.call("stop")
    assert (stopped["state"], stopped["stopped"]) == ("exited", True)
    assert (await process.call("start", argv=python(WAIT), env={}))["state"] == "starting"


async def test_shutdown_ends_one_that_waits_for_its_next_life(agent: Agent) -> None:
    process = await supervised(agent, python(WAIT), NOT_NOW)
    kill(await process.now())
    await process.until_state("restarting")
    await (await agent.connect()).call("shutdown")
    assert agent.sweep() == {"killed": [], "left": [], "agent_lives": False}


async def test_what_has_ended_is_not_supervised(agent: Agent) -> None:
    process = Supervised(agent, await agent.events())
    await process.call("start", argv=["true"], env={})
    await process.until_state("exited")
    with pytest.raises(AgentCallError, match="p cannot be supervised: it is exited"):
        await process.call("supervise", restart=SOON)


async def test_another_command_line_for_the_next_lives(agent: Agent) -> None:
    code = "import os, sys, time\nprint(sys.argv[1], os.environ['WORD'], flush=True)\ntime.sleep(1000)"
    later = {"argv": [*python(code), "second"], "env": {"WORD": "there"}}
    process = await supervised(agent, [*python(code), "first"], SOON, environment={"WORD": "here"}, **later)
    kill(await process.now())
    await process.events.until_line("second there")
    assert ("p", "first here") in process.events.lines


async def test_one_that_cannot_be_started_again(agent: Agent) -> None:
    """Its environment is longer than the kernel takes."""
    process = await supervised(agent, python(WAIT), {**SOON, "max_restarts": 2}, env={"X": "x" * 200_000})
    kill(await process.now())
    failed = await process.until_state("failed")
    assert failed["last_end"].startswith("could not be started again: [Errno 7]")


NVIDIA_SMI = "#!/bin/sh\ncat {answer}\n"


async def test_memory_of_a_gpu_that_is_still_held(
    idle_agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver here says so for as long as the test wants."""
    answer, tool = tmp_path / "answer", tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(NVIDIA_SMI.format(answer=answer))
    tool.chmod(0o755)
    answer.touch()
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    await idle_agent.start()
    process = await supervised(idle_agent, python(WAIT), SOON)
    before = await process.now()
    asked = tmp_path / "asked"
    tool.write_text(f"#!/bin/sh\necho >>{asked}\ncat {answer}\n")
    answer.write_text(f"{os.getpid()}\n{before['pid']}\n")
    kill(before)

    async def has_asked_twice() -> bool:
        return asked.exists() and len(asked.read_text()) >= 2

    await eventually_async(has_asked_twice, "nvidia-smi to be asked twice")
    assert (await process.now())["state"] == "restarting"
    answer.write_text(f"{os.getpid()}\n")
    assert (await process.until_state("ready"))["restarts"] == 1
    idle_agent.sweep(wait_s=0)


@asynccontextmanager
async def own_supervisor(folder: Path) -> AsyncIterator[Supervisor]:
    """A supervisor in this process, so that the test can stand in for the kernel."""
    (folder / "logs").mkdir()
    supervisor = Supervisor(folder, f"test{os.urandom(6).hex()}")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, supervisor.reap)
    sampling = asyncio.create_task(supervisor.sample_forever())
    try:
        yield supervisor
    finally:
        await supervisor.stop("p", 0)
        sampling.cancel()
        loop.remove_signal_handler(signal.SIGCHLD)


def supervise(supervisor: Supervisor) -> int:
    pid = supervisor.start("p", [sys.executable, "-S", "-c", WAIT], {}, None, 0)["pid"]
    supervisor.supervise("p", Restart(**SOON), Look(), argv=None, env=None)
    return pid


async def eventually_told(supervisor: Supervisor, **expected: object) -> dict[str, Any]:
    async def told() -> dict[str, Any] | None:
        (process,) = supervisor.snapshots()
        return process if expected.items() <= process.items() else None

    return await eventually_async(told, str(expected))


async def test_while_something_of_its_tree_lives_it_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that is stuck in the kernel, or belongs to another user. A sweep would still find it."""
    stuck, looks = [Stat(os.getpid(), 1, 7, 0, 0)], []

    def kill_until_gone(*_: object) -> list[Stat]:
        looks.append(1)
        return list(stuck)

    async with own_supervisor(tmp_path) as supervisor:
        pid = supervise(supervisor)
        monkeypatch.setattr(supervisor_module, "kill_until_gone", kill_until_gone)
        os.kill(pid, signal.SIGKILL)
        told = await eventually_told(supervisor, state="restarting", restart_in_s=0.0)
        assert f"pid {os.getpid()}" in told["warning"]
        seen = len(looks)

        record = tmp_path / "pids.json"

        async def looked_again() -> bool:
            return len(looks) > seen + 2 and record.exists() and f"[{pid}, " in record.read_text()

        await eventually_async(looked_again, "further looks, and a record of the process")
        assert supervisor.snapshots()[0]["pid"] == pid
        stuck.clear()
        again = await eventually_told(supervisor, state="ready", restarts=1)
        assert again["warning"] is None
        monkeypatch.undo()


async def test_memory_that_is_held_for_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [12345]
    monkeypatch.setattr(supervision_module, "still_held", lambda _: list(held))
    monkeypatch.setattr(supervision_module, "GPU_MEMORY_S", 0.0)
    monkeypatch.setattr(supervision_module, "_MEMORY_POLL_S", 0.01)
    async with own_supervisor(tmp_path) as supervisor:
        os.kill(supervise(supervisor), signal.SIGKILL)
        warning = "it is not started again while its last processes hold GPU memory (pid 12345)"
        await eventually_told(supervisor, state="restarting", warning=warning)
        held.clear()
        again = await eventually_told(supervisor, state="ready", restarts=1)
        assert again["warning"] is None


async def test_a_tool_that_does_not_say_who_holds_memory_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> list[int]:
        raise ValueError("failed: no driver")

    monkeypatch.setattr(supervision_module, "still_held", broken)
    async with own_supervisor(tmp_path) as supervisor:
        os.kill(supervise(supervisor), signal.SIGKILL)
        await eventually_told(supervisor, state="ready", restarts=1)
