"""Limits, logins, disk and ports."""

from typing import Any

import pytest
from doctor_samples import GIB, make_facts, make_host, shown, worst

from pdctl.doctor.checks.disk import check_disk
from pdctl.doctor.checks.limits import check_login, check_open_files, check_shm
from pdctl.doctor.checks.ports import check_ports
from pdctl.doctor.system import PortRules

DISK = {"path": "/state", "writable": True, "free_bytes": 100 * GIB, "free_files": 10**6}
SMALL_SHM = {"total_bytes": 64 << 20, "free_bytes": 60 << 20}


@pytest.mark.parametrize(
    ("engine", "shm", "findings"),
    [
        ("vllm", SMALL_SHM, ["warning a: 60 MiB of 64 MiB free in /dev/shm"]),
        ("vllm", None, ["warning a: no /dev/shm"]),
        ("vllm", {"total_bytes": GIB, "free_bytes": GIB}, ["ok a: 1 GiB free in /dev/shm"]),
        ("builtin", SMALL_SHM, []),  # one process, whose memory has no name
    ],
)
def test_shared_memory(engine: str, shm: dict[str, int] | None, findings: list[str]):
    assert shown(check_shm(make_facts(make_host(shm=shm), engine=engine, planned=False))) == findings


@pytest.mark.parametrize(
    ("limit", "finding"),
    [(1024, "warning a: a process may open 1024 only"), (8192, "ok a: up to 8192"), (None, "ok a: unlimited")],
)
def test_open_files(limit: int | None, finding: str):
    assert shown(check_open_files(make_facts(make_host(open_files=limit)))) == [finding]


@pytest.mark.parametrize(("ssh", "level"), [("a", "error"), (None, "warning")])
def test_a_login_manager_that_ends_what_was_started(ssh: str | None, level: str):
    login = {"user": "ops", "kills_processes": True, "removes_ipc": True}
    assert shown(check_login(make_facts(make_host(ssh=ssh, login=login)))) == [
        f"{level} a: when ops logs out, systemd ends what was started: KillUserProcesses is set"
    ]


def test_a_login_manager_that_removes_shared_memory():
    login = {"user": "ops", "kills_processes": False, "removes_ipc": True}
    (finding,) = check_login(make_facts(make_host(login=login), engine="vllm", planned=False))
    assert (finding.level, finding.remedy) == ("warning", "loginctl enable-linger ops")
    assert not list(check_login(make_facts(make_host(login=login))))  # the builtin engine has none with a name


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "ok a: 100 GiB free at /state"),
        ({"free_files": None}, "ok a: 100 GiB free at /state"),
        ({"writable": False}, "error a: /state is not writable"),
        ({"free_bytes": 1 << 20}, "error a: 1 MiB free at /state, 1000000 more files: it is full"),
        ({"free_files": 3}, "error a: 100 GiB free at /state, 3 more files: it is full"),
        (
            {"free_bytes": 100 << 20},
            "warning a: 100 MiB free at /state; the logs of 3 processes take up to 192 MiB",
        ),
    ],
)
def test_disk(changes: dict[str, Any], finding: str):
    assert shown(check_disk(make_facts(make_host(disk={**DISK, **changes})))) == [finding]


@pytest.mark.parametrize(
    ("port", "rules", "finding", "remedy"),
    [
        (8000, {}, "ok a: free: 8000", ""),
        (80, {}, "error a: only root may listen on 80: those below 1024 are privileged", "unprivileged_port_start=80"),
        (80, {"lowest": 1}, "ok a: free: 80", ""),
        (
            40000,
            {"reserved": "50000-50010"},
            "warning a: any outgoing connection may get 40000: the kernel gives out 32768-60999",
            "ip_local_reserved_ports=50000-50010,40000",
        ),
        (40000, {"reserved": "39000-40000"}, "ok a: free: 40000", ""),
    ],
)
def test_ports(port: int, rules: dict[str, Any], finding: str, remedy: str):
    host = make_host(ports={"ephemeral": (32768, 60999), **rules})
    facts = make_facts(host, topology={"router": {"host": "a", "port": port}})
    assert shown(check_ports(facts)) == [finding]
    assert remedy in "".join(one.remedy for one in worst(check_ports(facts)))


def test_ports_that_the_kernel_gives_out():
    rules = PortRules(ephemeral=(1000, 2000), reserved="1500,1600-1602")
    given = [port for port in (999, 1000, 1500, 1599, 1600, 1602, 1603, 2000, 2001) if rules.gives_out(port)]
    assert given == [1000, 1599, 1603, 2000]
