"""What processes get beside their command line: secrets, a folder, commands that run first; and HTTP through agents."""

import asyncio
import os
from pathlib import Path

import httpx
import psutil
import pytest

from pdctl.deployment.apply import prepare
from pdctl.deployment.launch import launch
from pdctl.deployment.remote_http import AgentTransport
from pdctl.deployment.secrets import read_secrets
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import PlanError
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.topology.fields import Secret
from tests.deployment.deployment_harness import make_plan, process


def with_decode(plan: Plan, **changes: object) -> Plan:
    """The plan with other settings of its last engine."""
    *others, decode = plan.engines
    return plan.model_copy(update={"engines": (*others, decode.model_copy(update=changes))})


def needs(**secrets: Secret) -> ProcessPlan:
    return process("decode-0", "decode").model_copy(update={"secrets": secrets})


def test_secrets_are_read_from_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_1")
    (tmp_path / "key").write_text("k2\n")
    secrets = {"HF_TOKEN": Secret(env="MY_TOKEN"), "KEY": Secret(file=str(tmp_path / "key"))}
    assert read_secrets(needs(**secrets)) == {"HF_TOKEN": "hf_1", "KEY": "k2"}


def test_a_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(PlanError, match=r"^decode-0: secret HF_TOKEN: the variable MY_TOKEN is not set here: set it$"):
        read_secrets(needs(HF_TOKEN=Secret(env="MY_TOKEN")))
    with pytest.raises(PlanError, match=r"^decode-0: secret KEY: /no/such/file cannot be read: No such file"):
        read_secrets(needs(KEY=Secret(file="/no/such/file")))


async def test_a_process_gets_its_secrets_folder_and_setup(
    folder: DeploymentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_secret_1")
    plan = with_decode(
        make_plan(),
        secrets={"HF_TOKEN": Secret(env="MY_TOKEN")},
        workdir=str(tmp_path),
        setup="export FROM_SETUP=$HF_TOKEN-seen",
    )
    deployment = prepare(plan, folder)
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(PlanError, match="MY_TOKEN is not set here"):
        await launch(deployment)
    monkeypatch.setenv("MY_TOKEN", "hf_secret_1")
    deployment = prepare(plan, folder)
    await launch(deployment)
    status = await deployment.status()
    engine = psutil.Process(next(one.pid for one in status.processes if one.name == "decode-0") or 0)
    assert engine.environ()["FROM_SETUP"] == "hf_secret_1-seen"
    assert engine.cwd() == str(tmp_path)
    written = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    assert not [content for content in written if b"hf_secret_1" in content], "the secret is in a file"
    others = [one for one in psutil.process_iter() if any("hf_secret_1" in word for word in _words(one))]
    assert others == [], "the secret is on a command line"
    await stop_deployment(deployment)
    await deployment.close()


async def test_a_setup_that_fails_ends_the_start(folder: DeploymentFolder) -> None:
    deployment = prepare(with_decode(make_plan(), setup="false\necho never"), folder)
    with pytest.raises(Exception, match="decode-0 exited with code 1"):
        await launch(deployment)
    await deployment.close()


async def test_http_through_an_agent(folder: DeploymentFolder) -> None:
    """As to a host whose addresses are not reached from here."""
    deployment = prepare(make_plan(), folder)
    await launch(deployment)
    endpoint = deployment.state.endpoint
    async with httpx.AsyncClient(transport=AgentTransport(lambda: deployment.client("here"))) as client:
        there = await client.get(f"{endpoint}/registered")
        here = await deployment.http("here").get(f"{endpoint}/registered")
        assert (there.status_code, there.json()) == (here.status_code, here.json())
        assert there.json()["decode"]
        asked = await client.post(f"{endpoint}/v1/completions", json={"prompt": "å", "model": "fake"})
        assert asked.status_code == 200
        port = await _closed_port()
        with pytest.raises(httpx.ConnectError, match=f"127.0.0.1:{port}|refused"):
            await client.get(f"http://127.0.0.1:{port}/health")
    await stop_deployment(deployment)
    await deployment.close()


async def _closed_port() -> int:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        return int(server.sockets[0].getsockname()[1])


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.pid != os.getpid() else []
    except psutil.Error:
        return []
