"""What is sent to hosts that have nothing of ours: the agent as one file, and the engine as a wheel."""

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from pdctl.hosts.archive import agent_archive
from pdctl.hosts.wheel import own_wheel


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / agent_archive().name
    path.write_bytes(agent_archive().content)
    return path


def test_the_agent_runs_from_its_archive_alone(archive: Path, tmp_path: Path) -> None:
    """With no package on the path but the standard library."""
    command = [sys.executable, "-I", "-S", str(archive), "probe", "--dir", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, cwd="/", timeout=60).stdout)
    assert found["python"] == sys.executable


def test_what_python_keeps_of_it_is_written_at_its_first_start_only(archive: Path, tmp_path: Path) -> None:
    """A disk that becomes full later must not leave a part of a module."""
    command = [sys.executable, "-I", "-S", str(archive), "logs", "--dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd="/", timeout=60)
    folder = archive.with_suffix("") / "pdctl" / "agent"
    kept = {path.name.partition(".")[0]: path for path in (folder / "__pycache__").iterdir()}
    assert set(kept) == {path.stem for path in folder.glob("*.py")}
    kept["logs"].unlink()
    subprocess.run(command, check=True, cwd="/", timeout=60)
    assert not kept["logs"].exists()


def test_an_agent_from_the_archive_starts_processes(archive: Path, tmp_path: Path) -> None:
    """The shim, which is no file there, is run all the same."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pdctl.agent.spawn import spawn\n"
        "import os\n"
        "started = spawn(['sh', '-c', 'echo from the child'], dict(os.environ), None)\n"
        "os.waitpid(started.pid, 0)\n"
        "print(os.read(started.output, 100).decode(), end='')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(archive)]
    done = subprocess.run(command, capture_output=True, check=True, cwd="/", timeout=60, text=True)
    assert done.stdout == "from the child\n"


def test_the_archive_is_the_same_each_time() -> None:
    agent_archive.cache_clear()
    first = agent_archive()
    agent_archive.cache_clear()
    assert agent_archive() == first


def test_the_wheel_has_all_that_runs_here() -> None:
    with zipfile.ZipFile(BytesIO(own_wheel().content)) as wheel:
        names = wheel.namelist()
    for expected in ("pdctl/cli/main.py", "engine/__main__.py", "pdctl/profiles_data/routers/vllm-router.yaml"):
        assert expected in names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_can_be_installed(tmp_path: Path) -> None:
    """pip checks the record; the command and the profiles are found in what it installs."""
    wheel = tmp_path / own_wheel().name
    wheel.write_bytes(own_wheel().content)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120, capture_output=True)
    code = "from pdctl.profiles.loading import profiles_folder as f; print(f()); import pdctl; print(pdctl.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(target / "pdctl/profiles_data"), str(target / "pdctl/__init__.py")]


def test_what_is_pinned_has_no_build_of_one_machine() -> None:
    lines = own_wheel().constraints.splitlines()
    assert any(line.startswith("pydantic==") for line in lines)
    assert not [line for line in lines if "+" in line or line.startswith("pdctl==")]
