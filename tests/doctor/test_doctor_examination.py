"""The whole way: hosts are asked, and their answers judged. A script in ssh's place runs everything on this machine."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_samples import make_facts, make_host, make_inventory, netdev, shown, worst

from pdctl.doctor.checks.connections import check_connections
from pdctl.doctor.examination import examine, refuse_unfit
from pdctl.doctor.finding import Finding
from pdctl.doctor.meeting import doors_of, hold_meeting, invitation
from pdctl.errors import ExitCode, UnfitError
from pdctl.planning.planner import make_plan
from pdctl.planning.probing import probe_hosts
from pdctl.profiles import load_profile
from pdctl.topology.models import Topology

PDCTL = Path(sys.executable).parent / "pdctl"
SSH = """#!/bin/sh
for script; do :; done
case "$*" in *unplugged*) echo "ssh: connect to host unplugged port 22: No route to host" >&2; exit 255;; esac
exec sh -c "$script"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def topology(**changes: Any) -> Topology:
    return Topology.model_validate({"router": {"port": 0}, "prefill": [{}], "decode": [{}], **changes})


def by_subject(findings: list[Finding], host: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings if finding.host == host}


async def test_this_machine(tmp_path: Path):
    findings = await examine(topology(), tmp_path)
    assert not [finding for finding in findings if finding.level == "error"]
    here = by_subject(findings, "here")
    assert here["reach"].text == "this machine"
    assert here["python"].text.endswith(sys.executable)
    assert here["engine"].text.startswith("builtin ")
    assert by_subject(findings, "")["placement"].text == "3 processes on here"


async def test_a_port_that_somebody_has(tmp_path: Path, port: int):
    bad = worst(iter(await examine(topology(router={"port": port}), tmp_path)))
    errors = [finding for finding in bad if finding.level == "error"]
    assert [finding.subject for finding in errors] == ["placement"]
    assert f"port {port} of host 'here' is not free: pid {os.getpid()}" in errors[0].text


async def test_ports_that_cannot_be_are_a_finding_too(tmp_path: Path):
    wrong = topology(decode=[{"args": {"pd-comm-port": "x"}}])
    errors = [finding for finding in await examine(wrong, tmp_path) if finding.level == "error"]
    assert [(finding.subject, finding.text) for finding in errors] == [
        ("placement", "decode[0].args.pd-comm-port: x is no port")
    ]


@pytest.mark.usefixtures("ssh")
async def test_a_host_that_is_gone_does_not_keep_the_others_from_answering(tmp_path: Path):
    hosts = {"here": {}, "one": {"ssh": "one", "python": sys.executable}, "two": {"ssh": "unplugged"}}
    roles = {"prefill": [{"host": "one"}], "decode": [{"host": "two"}], "model": str(tmp_path / "none")}
    findings = await examine(topology(hosts=hosts, **roles), tmp_path)
    assert by_subject(findings, "two")["reach"].text == (
        "`ssh unplugged`: ssh: connect to host unplugged port 22: No route to host"
    )
    one = by_subject(findings, "one")
    assert one["reach"].level == "ok"
    assert one["clock"].level == "ok"
    assert one["model"].text == f"there is no {tmp_path / 'none'}"
    assert by_subject(findings, "")["placement"].text == "not known without two"


@pytest.mark.usefixtures("ssh")
async def test_hosts_visit_each_other_on_the_planned_ports(tmp_path: Path):
    addresses = {"a": "127.0.0.2", "b": "127.0.0.3"}
    hosts = [
        make_host(
            name, address, given_address=address, inventory=make_inventory(address), netdevs=[netdev(address)],
            ports={"ephemeral": (40000, 50000)},
        )
        for name, address in addresses.items()
    ]  # fmt: skip
    facts = make_facts(*hosts, topology={"router": {"host": "a", "port": free_port("127.0.0.2")}})
    facts = replace(facts, hosts={host.name: with_own_address(host, addresses[host.name]) for host in hosts})
    met = await hold_meeting(facts, tmp_path)
    router = facts.topology.router.port
    assert shown(check_connections(met)) == [
        f"ok a: b reached it on {router}, one of 40000-50000",
        "ok b: a reached it on one of 40000-50000",
    ]


def with_own_address(host: Any, address: str) -> Any:
    return replace(host, system=host.system.model_copy(update={"address": address}))


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probing:
        return int(probing.getsockname()[1])


def test_where_hosts_listen_and_whom_they_visit():
    busy = make_inventory("10.0.0.2", taken_ports={20000: "the deployment that runs"})
    roles = {"router": {"host": "a", "port": 8000, "bind": "0.0.0.0"}, "decode": [{"host": "b"}]}
    facts = make_facts(make_host(), make_host("b", "10.0.0.2", inventory=busy), topology=roles)
    doors = {name: doors_of(facts, host) for name, host in facts.hosts.items()}
    assert doors["a"][8000] == ("0.0.0.0", "10.0.0.1")
    (spare,) = (port for port in doors["b"])
    assert 32768 <= spare <= 60999
    request = invitation(doors, "b", "t")
    assert (request["listen"], request["expect"]) == ([("10.0.0.2", spare)], ["a"])
    assert ("a", "10.0.0.1", 8000) in request["reach"]
    assert len(request["reach"]) == len(doors["a"])


async def quick(asked: Topology, root: Path) -> list[Finding]:
    profile = load_profile(asked.engine)
    inventories = await probe_hosts(asked, profile, root)
    return await refuse_unfit(asked, profile, inventories, make_plan(asked, profile, inventories), root)


async def test_the_quick_part_says_what_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdctl.doctor.checks.limits.OPEN_FILES", 1 << 40)
    findings = await quick(topology(), tmp_path)
    assert "open files" in [finding.subject for finding in findings]
    assert {finding.level for finding in findings} == {"warning"}


async def test_the_quick_part_refuses_what_cannot_run(tmp_path: Path):
    asked = topology(model=str(tmp_path / "none"), hosts={"here": {"workdir": "/none"}})
    with pytest.raises(UnfitError) as refused:
        await quick(asked, tmp_path)
    assert refused.value.exit_code == ExitCode.UNFIT
    assert str(refused.value) == "host here: workdir: there is no folder /none: mkdir -p /none"
    assert refused.value.detail.startswith(f"host here: model: there is no {tmp_path / 'none'}: ")


@pytest.fixture
def doctor(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"PDCTL_STATE_DIR": str(tmp_path / "state")}
        command = [PDCTL, "doctor", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_the_command(doctor: Any, tmp_path: Path):
    (tmp_path / "t.yaml").write_text("name: chat\nrouter: {port: 0}\nprefill: 1\ndecode: 1\n")
    done = doctor("t.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ok", "here", "reach", "this", "machine"]
    assert lines[-1].startswith("chat: 0 errors, ")
    assert "\x1b" not in done.stdout
    assert not (tmp_path / "state").exists()  # it changes nothing
    data = json.loads(doctor("t.yaml", "--json", "--name", "other").stdout)
    assert data["name"] == "other"
    assert data["findings"][0] == {
        "level": "ok", "host": "here", "subject": "reach", "text": "this machine", "remedy": "",
    }  # fmt: skip


@pytest.mark.usefixtures("ssh")
def test_errors_come_last_and_have_an_exit_code(doctor: Any, tmp_path: Path):
    (tmp_path / "t.yaml").write_text("hosts: {two: {ssh: unplugged}}\nprefill: {host: here}\ndecode: {host: two}\n")
    done = doctor("t.yaml")
    assert done.returncode == ExitCode.UNFIT
    assert {line.split()[0] for line in done.stdout.splitlines()[:-1]} == {"ok", "warning"}
    assert done.stderr == (
        "error: host two: reach: `ssh unplugged`: ssh: connect to host unplugged port 22: No route to host\n"
        "  ssh -v unplugged true\n"
    )
    assert doctor("t.yaml", "--json").returncode == ExitCode.UNFIT
