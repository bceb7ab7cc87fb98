"""`pdctl plan`, `pdctl init` and `pdctl schema`, as a user runs them."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pdctl.errors import ExitCode
from pdctl.planning.plan import Plan

PDCTL = Path(sys.executable).parent / "pdctl"


@pytest.fixture
def pdctl(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PDCTL_STATE_DIR": str(tmp_path / "state")}
        return subprocess.run(
            [PDCTL, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_the_plan_as_text(pdctl, tmp_path: Path):
    (tmp_path / "t.yaml").write_text(
        "name: chat\nrouter: {port: 0}\nprefill: 1\ndecode: {env: {HF_TOKEN: abc, A: b c}, args: {max-num-seqs: 3}}\n"
    )
    result = pdctl("plan", "t.yaml")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("chat: smollm2-135m-instruct on engine builtin\n")
    assert "abc" not in result.stdout
    lines = result.stdout.splitlines()
    command = shlex.split(lines[lines.index("decode-0") + 1])
    assert command[0] == "env"
    assert {"HF_TOKEN=***", "A=b c"} < set(command)
    assert command[-2:] == ["--max-num-seqs", "3"]
    assert sys.executable in command
    assert not (tmp_path / "state").exists()


def test_the_plan_as_json(pdctl):
    result = pdctl("plan", "--json", "--name", "other", str(Path(__file__).parents[2] / "examples" / "2p1d.yaml"))
    plan = Plan.model_validate(json.loads(result.stdout))
    assert plan.name == "other"
    assert [engine.name for engine in plan.engines] == ["prefill-0", "prefill-1", "decode-0"]


def test_a_taken_port_is_named_with_its_holder(pdctl, tmp_path: Path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (tmp_path / "t.yaml").write_text(f"router: {{port: {port}}}\nprefill: 1\ndecode: 1\n")
        result = pdctl("plan", "t.yaml")
    assert result.returncode == ExitCode.PLAN
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: router.port: port {port} of host 'here' is not free: pid {os.getpid()} (")
    assert result.stderr.count("\n") == 1


def test_a_host_that_ssh_does_not_reach_is_one_line(pdctl, tmp_path: Path):
    (tmp_path / "t.yaml").write_text("hosts: {far: {ssh: nobody@no-such-host.invalid}}\nmixed: {host: far}\n")
    result = pdctl("plan", "t.yaml")
    assert result.returncode == ExitCode.UNREACHABLE
    assert result.stderr.startswith("error: host far: `ssh nobody@no-such-host.invalid`: ")
    assert result.stderr.count("\n") == 1


def test_a_wrong_topology_is_one_line_and_its_detail(pdctl, tmp_path: Path):
    (tmp_path / "t.yaml").write_text("name: a b\nprefil: 1\n")
    result = pdctl("plan", "t.yaml")
    assert result.returncode == ExitCode.TOPOLOGY
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        ["error", "t.yaml:1", "name"],
        ["  t.yaml:2", "prefil", "unknown key, did you mean 'prefill'?"],
    ]


def test_init_writes_a_topology_that_can_be_planned(pdctl, tmp_path: Path):
    written = pdctl("init", "chat.yaml")
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout == "Wrote chat.yaml. Start it with `pdctl up chat.yaml`.\n"
    plan = Plan.model_validate(json.loads(pdctl("plan", "--json", "chat.yaml").stdout))
    assert (plan.name, len(plan.engines)) == ("chat", 2)


def test_init_overwrites_only_by_force(pdctl, tmp_path: Path):
    path = tmp_path / "topology.yaml"
    path.write_text("mine")
    refused = pdctl("init")
    assert refused.returncode == ExitCode.USAGE
    assert "topology.yaml exists: give another path, or --force to overwrite it" in refused.stderr
    assert path.read_text() == "mine"
    assert pdctl("init", "--force").returncode == 0
    assert "\nname: default" in path.read_text()


def test_init_where_nothing_can_be_written(pdctl):
    result = pdctl("init", "none/chat.yaml")
    assert (result.returncode, result.stderr) == (
        1,
        "error: none/chat.yaml: cannot be written: No such file or directory\n",
    )


def test_schema(pdctl):
    schema = json.loads(pdctl("schema").stdout)
    assert schema["title"] == "Topology"
    assert set(schema["properties"]) >= {"name", "model", "prefill", "decode", "mixed"}
