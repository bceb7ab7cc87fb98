"""What the agent finds on a host."""

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pdctl.agent.examine import examine
from pdctl.agent.interpreter import examine_interpreter
from pdctl.agent.login import login_rules
from pdctl.agent.netdevs import read_netdevs
from pdctl.doctor.system import System

ROOT = Path(__file__).parents[2]
NVIDIA = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U16)\n"


def look(folder: Path, **options: Any) -> System:
    given = {"address": None, "python": sys.executable, "workdirs": [], "model": None, "hub": None, "read_model": False}
    return System.model_validate(examine(folder, **{**given, **options}))


def proc(folder: Path, **files: str) -> Path:
    """A /proc with these files; __ in a name stands for /."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_this_machine(tmp_path: Path):
    before = time.time()
    system = look(tmp_path / "not" / "yet", workdirs=[str(tmp_path), "/none"])
    assert before <= system.clock[0] <= system.clock[1] <= time.time()
    assert system.python == system.interpreter.version == platform.python_version()
    assert (system.disk.path, system.disk.writable) == (str(tmp_path), True)
    assert abs(system.disk.free_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30  # others write meanwhile
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert system.open_files == (None if hard == resource.RLIM_INFINITY else hard)
    assert system.absent_workdirs == ("/none",)
    assert system.ports.ephemeral[0] < system.ports.ephemeral[1]
    assert system.model is None


def test_every_address_has_its_interface_and_mtu():
    found = {(one["name"], one["address"], one["mtu"]) for one in read_netdevs()}
    mtus = {name: stats.mtu for name, stats in psutil.net_if_stats().items()}
    expected = {
        (name, address.address, mtus[name])
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    }
    assert expected <= found
    assert ("lo", "127.0.0.1", mtus["lo"]) in found


def test_the_name_of_an_address_is_resolved_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert look(tmp_path, address="localhost").address == "127.0.0.1"

    def unknown(name: str) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert look(tmp_path, address="name.invalid").address is None


def test_the_driver_is_known_without_its_tools(tmp_path: Path):
    assert look(tmp_path, proc=proc(tmp_path / "proc", driver__nvidia__version=NVIDIA)).driver == "570.86.15"
    assert look(tmp_path, proc=tmp_path / "proc" / "none").driver is None


@pytest.mark.parametrize(
    ("capabilities", "ids", "unlimited", "lowest"),
    [
        ("000001ffffffffff", "0 0 4294967295", True, 1),
        ("000001ffffffffff", "0 100000 65536", False, 1),  # root of a user namespace: the kernel counts its memory
        ("0000000000000000", "0 0 4294967295", False, 500),
    ],
)
def test_what_capabilities_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: str,
    ids: str,
    unlimited: bool,
    lowest: int,
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    system = look(
        tmp_path,
        proc=proc(
            tmp_path / "proc",
            self__status=f"Name:\tx\nCapEff:\t{capabilities}\n",
            self__uid_map=f"         {ids}\n",
            sys__net__ipv4__ip_local_port_range="1000\t2000\n",
            sys__net__ipv4__ip_local_reserved_ports="1500\n",
            sys__net__ipv4__ip_unprivileged_port_start="500\n",
        ),
    )
    assert system.memlock == (None if unlimited else 8 << 20)
    assert (system.ports.lowest, system.ports.ephemeral, system.ports.reserved) == (lowest, (1000, 2000), "1500")


def test_interpreters_that_do_not_work(tmp_path: Path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no libpython >&2; exit 3\n")
    broken.chmod(0o755)
    assert examine_interpreter(str(broken))["problem"] == "cannot say what it is: no libpython"
    assert examine_interpreter(str(tmp_path / "none"))["problem"] == "cannot be run: No such file or directory"


@pytest.mark.parametrize(
    ("user", "settings", "kills"),
    [
        ("ops", "[Login]\nKillUserProcesses=yes\n", True),
        ("ops", "[Login]\n#KillUserProcesses=yes\n", False),
        ("ops", "KillUserProcesses = no\n", False),
        ("root", "KillUserProcesses=yes\n", False),  # spared unless somebody else is
        ("root", "KillUserProcesses=yes\nKillExcludeUsers=ops\n", True),
        ("ops", "KillUserProcesses=yes\nKillExcludeUsers=root ops\n", False),
        ("ops", "KillUserProcesses=yes\nKillOnlyUsers=guest\n", False),
        ("guest", "KillOnlyUsers=guest\n", True),
    ],
)
def test_whom_a_logout_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, settings: str, kills: bool):
    monkeypatch.setattr("pdctl.agent.login._user_name", lambda: user)
    proc(tmp_path, proc__self__cgroup="0::/user.slice/user-1000.slice/session-7.scope\n")
    proc(tmp_path / "etc/systemd", **{"logind.conf": settings})
    assert login_rules(tmp_path) == {**login_rules(tmp_path), "user": user, "kills_processes": kills}


def test_the_last_addition_to_the_settings_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdctl.agent.login._user_name", lambda: "ops")
    proc(tmp_path, proc__self__cgroup="0::/user.slice/user-1000.slice/session-7.scope\n")
    proc(tmp_path / "etc/systemd", **{"logind.conf": "KillUserProcesses=yes\n"})
    proc(tmp_path / "usr/lib/systemd/logind.conf.d", **{"10-a.conf": "KillUserProcesses=no\n"})
    assert not login_rules(tmp_path)["kills_processes"]
    proc(tmp_path / "etc/systemd/logind.conf.d", **{"10-a.conf": "KillUserProcesses=yes\n"})  # instead of the other
    assert login_rules(tmp_path)["kills_processes"]


def test_what_is_in_no_session_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdctl.agent.login._user_name", lambda: "ops")
    proc(tmp_path, proc__self__cgroup="0::/system.slice/ssh.service\n")
    proc(tmp_path / "etc/systemd", **{"logind.conf": "KillUserProcesses=yes\n"})
    assert login_rules(tmp_path) == {"user": "ops", "kills_processes": False, "removes_ipc": False}


@pytest.mark.parametrize(
    ("uid", "settings", "lingers", "removes"),
    [(1000, "", False, True), (1000, "", True, False), (1000, "RemoveIPC=no\n", False, False), (0, "", False, False)],
)
def test_whose_shared_memory_a_logout_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, settings: str, lingers: bool, removes: bool
):
    monkeypatch.setattr("pdctl.agent.login._user_name", lambda: "ops")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    proc(tmp_path, proc__self__cgroup="1:name=systemd:/user.slice/user-1000.slice/session-c2.scope\n")
    proc(tmp_path / "etc/systemd", **{"logind.conf": settings})
    if lingers:
        proc(tmp_path / "var/lib/systemd/linger", ops="")
    assert login_rules(tmp_path)["removes_ipc"] is removes


def test_the_oldest_python_that_an_agent_has(tmp_path: Path):
    python = next(iter(sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))), None) or shutil.which("python3.9")
    if python is None:
        pytest.skip("python3.9 is not installed")
    command = [python, "-m", "pdctl.agent", "examine", "--dir", str(tmp_path), "--model", str(tmp_path), "--read-model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert System.model_validate(json.loads(done.stdout)).python.startswith("3.9.")
