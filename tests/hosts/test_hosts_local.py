"""This machine as a host: its agent's commands, run as processes."""

import asyncio
import json
from pathlib import Path

import pytest

from pdctl.agent.logs import Line, RotatingLog, log_path
from pdctl.agent.paths import prepare_folder
from pdctl.agent.protocol import VERSION, encode, read_message
from pdctl.errors import StepTimeoutError
from pdctl.hosts import host as hosts
from pdctl.hosts.client import AgentCallError, AgentGoneError
from pdctl.hosts.host import Host, HostError
from pdctl.hosts.open import open_host
from pdctl.planning.inventory import Inventory
from tests.agent.agent_harness import living, new_run_id


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return open_host("here")


async def test_probing(host: Host, tmp_path: Path) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        inventory = Inventory.model_validate(await host.probe(tmp_path / "state", [port]))
    assert list(inventory.taken_ports) == [port]
    assert not (tmp_path / "state").exists()


async def test_logs_without_an_agent(host: Host, tmp_path: Path) -> None:
    prepare_folder(tmp_path / "agent")
    for name, time in (("a", 2.5), ("b", 1.5)):
        RotatingLog(log_path(tmp_path / "agent", name)).write([Line(time, f"of {name}")])
    assert await host.read_logs(tmp_path / "agent", [], 10) == [("b", 1.5, "of b"), ("a", 2.5, "of a")]
    assert await host.read_logs(tmp_path / "agent", ["a", "none"], 10) == [("a", 2.5, "of a")]


async def test_a_folder_named_like_us_is_not_imported(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pdctl").mkdir()
    (tmp_path / "pdctl" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert await host.read_logs(tmp_path, [], 10) == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"socket": 5}'])
async def test_a_damaged_description_is_no_agent(host: Host, tmp_path: Path, content: str) -> None:
    (tmp_path / "agent.json").write_text(content)
    with pytest.raises(AgentGoneError, match=r"host here: .*agent\.json is damaged: run `pdctl down`"):
        await host.connect(tmp_path)


async def test_an_agent_of_another_version_is_refused(host: Host, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_message(reader)) is not None:
            writer.write(encode({"id": request["id"], "result": {"version": VERSION + 1}}))
        writer.close()

    path = str(tmp_path / "agent.sock")
    (tmp_path / "agent.json").write_text(json.dumps({"socket": path}))
    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(AgentCallError, match=rf"host here: .* version {VERSION + 1} .* `pdctl down`"):
            await host.connect(tmp_path)


async def test_what_goes_wrong_is_one_line(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"^host here: cannot serve: .*Not a directory.*$"):
        await host.start_agent(tmp_path / "file" / "agent", new_run_id())


async def test_a_command_that_takes_too_long(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "PROBE_TIMEOUT_S", 0.01)
    with pytest.raises(StepTimeoutError, match=r"host here: `probe` did not finish in 0\.01 s"):
        await host.probe(tmp_path, [])


async def test_a_start_that_is_given_up_can_be_swept(host: Host, tmp_path: Path) -> None:
    """At whatever moment it was given up."""
    for delay in (0.0, 0.03, 0.06, 0.09, 0.12):
        run_id = new_run_id()
        start = asyncio.create_task(host.start_agent(tmp_path / run_id, run_id))
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.wait({start})
        assert (await host.sweep(tmp_path / run_id, run_id, 0, force=True)).left == []
        assert living(run_id) == []
