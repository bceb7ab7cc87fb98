"""The agent's socket: who may use it, what it answers to nonsense, and to those who read too slowly."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdctl.agent.paths import SOCKET_PATH_LIMIT, AgentError, socket_path
from pdctl.agent.protocol import MAX_MESSAGE_BYTES, VERSION, encode, read_message
from pdctl.hosts.client import AgentCallError, AgentGoneError
from pdctl.hosts.host import HostError
from pdctl.hosts.open import open_host
from tests.agent.agent_harness import Agent, eventually, eventually_async, is_alive, python


def test_the_socket_lies_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = socket_path("run")
    assert path.parent == tmp_path / "pdctl"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_too_long_for_a_socket_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert socket_path("run").parent == Path(f"/tmp/pdctl-{os.geteuid()}")


def test_each_run_has_a_socket_of_its_own_however_long_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    long = "x" * SOCKET_PATH_LIMIT
    assert len({socket_path(f"{long}-{host}") for host in ("a", "b")}) == 2
    assert socket_path(long) == socket_path(long)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "pdctl").mkdir()
    (tmp_path / "pdctl").chmod(0o755)
    with pytest.raises(AgentError, match="chmod 700"):
        socket_path("run")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "pdctl").symlink_to("elsewhere")
    with pytest.raises(AgentError, match="not a folder of yours"):
        socket_path("run")


async def test_why_an_agent_cannot_start_is_told(idle_agent: Agent) -> None:
    runtime = Path(os.environ["XDG_RUNTIME_DIR"])
    (runtime / "pdctl").mkdir()
    (runtime / "pdctl").chmod(0o755)
    with pytest.raises(HostError, match="chmod 700"):
        await idle_agent.start()


async def test_a_second_agent_for_a_folder_is_refused(agent: Agent) -> None:
    with pytest.raises(HostError, match="another agent serves"):
        await agent.start()
    assert is_alive(agent.pid)


async def test_an_agent_starts_where_another_was_killed(agent: Agent) -> None:
    agent.sweep(wait_s=0)
    await agent.start()
    assert (await (await agent.connect()).call("hello"))["run_id"] == agent.run_id


async def test_a_socket_that_was_removed_is_made_again(agent: Agent) -> None:
    """As the whole runtime folder is, when its user has logged out everywhere."""
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"])
    eventually(lambda: "/tmp/pdctl-" in (agent.folder / "agent.json").read_text(), "another socket")
    assert (await (await agent.connect()).call("hello"))["pid"] == agent.pid


async def test_hello(agent: Agent) -> None:
    answer = await (await agent.connect()).call("hello")
    assert (answer["version"], answer["pid"], answer["run_id"]) == (VERSION, agent.pid, agent.run_id)


async def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(AgentGoneError, match="here"):
        await open_host("here").connect(tmp_path)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [("fly", {}, "no method"), ("stop", {"name": "none"}, "no process"), ("stop", {"nme": "p"}, "nme")],
)
async def test_a_wrong_request_is_answered(agent: Agent, method: str, params: dict[str, object], message: str) -> None:
    client = await agent.connect()
    with pytest.raises(AgentCallError, match=message):
        await client.call(method, **params)
    assert await client.call("list") == []


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\2no",
        b"\0\0\0\2[]",
        b"\0\0\0\7par",
    ],
)
async def test_who_breaks_the_protocol_is_hung_up_on(agent: Agent, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(json.loads((agent.folder / "agent.json").read_text())["socket"])
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert await (await agent.connect()).call("list") == []


async def test_calls_on_one_connection_run_side_by_side(agent: Agent) -> None:
    client = await agent.connect()
    events = await agent.events()
    code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(1000)"
    await client.call("start", name="p", argv=python(code), env={})
    await events.until_line("up")
    stopping = asyncio.create_task(client.call("stop", name="p", grace_s=100, timeout_s=120))
    await events.until_state("p", "stopping")
    assert [process["state"] for process in await client.call("list")] == ["stopping"]
    await client.call("stop", name="p", grace_s=0)
    await stopping


async def test_calls_fail_when_the_agent_ends(agent: Agent) -> None:
    client = await agent.connect()
    agent.sweep(wait_s=0)
    with pytest.raises(AgentGoneError):
        await client.call("list")
    with pytest.raises(AgentGoneError):
        await client.next_event()


async def test_a_slow_subscriber_loses_lines_and_is_told_how_many(agent: Agent) -> None:
    """Nobody else waits for it: neither the process nor the agent."""
    count = 100_000
    events = await agent.events()
    client = await agent.connect()
    code = f"import sys\nfor i in range({count}): sys.stdout.write('x' * 50 + chr(10))"
    await client.call("start", name="p", argv=["env", "-u", "PYTHONUNBUFFERED", *python(code)], env={})

    async def exited() -> bool:
        return (await client.call("list", timeout_s=5))[0]["state"] == "exited"

    await eventually_async(exited, "the end of the process although nobody reads")
    await events.until(lambda events: len(events.lines) + events.lost >= count)
    assert len(events.lines) + events.lost == count
    assert events.lost > 0
    assert [state["state"] for state in events.states][-1] == "exited"


async def test_a_subscriber_gets_only_what_it_asked_for(agent: Agent) -> None:
    events = await agent.events(names=["b"])
    client = await agent.connect()
    for name in ("a", "b"):
        await client.call("start", name=name, argv=python(f"print('{name}')"), env={})
    await events.until_state("b", "exited")
    await events.until_line("b")
    assert {name for name, _ in events.lines} | {state["name"] for state in events.states} == {"b"}


async def test_stdin_and_stdout_joined_to_the_socket(agent: Agent) -> None:
    command = [sys.executable, "-m", "pdctl.agent", "connect", "--dir", str(agent.folder)]
    pipe = asyncio.subprocess.PIPE
    bridge = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert bridge.stdin is not None
    assert bridge.stdout is not None
    bridge.stdin.write(encode({"id": 5, "method": "list", "params": {}}))
    answer = await asyncio.wait_for(read_message(bridge.stdout), 20)
    assert answer == {"id": 5, "result": []}
    bridge.stdin.close()
    assert await asyncio.wait_for(bridge.wait(), 20) == 0


def test_joining_where_no_agent_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdctl.agent", "connect", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, f"no agent serves {tmp_path}\n")
