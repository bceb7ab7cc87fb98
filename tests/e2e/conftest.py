"""Real deployments, started and stopped by the command line as a user would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

PDCTL = Path(sys.executable).parent / "pdctl"


@dataclass(frozen=True)
class Cli:
    """Runs `pdctl` with a state folder of its own."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PDCTL_STATE_DIR": str(self.folder / "state"), "XDG_RUNTIME_DIR": str(self.folder / "run")}

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PDCTL, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def spawn(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PDCTL, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def write(self, topology: dict[str, object]) -> Path:
        """Write a topology file; its router takes any free port where none is given."""
        path = self.folder / f"{topology.get('name', 'default')}.yaml"
        path.write_text(json.dumps({"router": {"port": 0}} | topology))
        return path

    def status(self, *arguments: str) -> dict[str, object]:
        return json.loads(self("status", "--json", *arguments).stdout)

    def processes(self) -> list[psutil.Process]:
        """Every process that was started under this state folder, found through /proc and not through our books."""
        return [process for process in psutil.process_iter() if _is_ours(process, self.folder)]


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("PDCTL_STATE_DIR") == str(folder / "state") and process.status() != "zombie"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """A command line whose deployments must be gone at the end of the test."""
    with clean_cli(tmp_path) as cli:
        yield cli


@contextmanager
def clean_cli(folder: Path) -> Iterator[Cli]:
    cli = Cli(folder)
    (folder / "run").mkdir(mode=0o700)
    segments = set(Path("/dev/shm").iterdir())
    try:
        yield cli
        left = [" ".join(process.cmdline()) for process in cli.processes()]
        assert not left, f"processes left behind: {left}"
        assert set(Path("/dev/shm").iterdir()) <= segments
    finally:
        for process in cli.processes():
            process.kill()


@dataclass(frozen=True)
class Serving:
    """A running deployment."""

    cli: Cli
    topology: Path
    status: dict[str, object]
    url: str

    def metric(self, role: str, name: str) -> float:
        """Add up a metric over the engines of a role."""
        return sum(
            self._samples(process, name) for process in self.cli.status()["processes"] if process["role"] == role
        )

    @staticmethod
    def _samples(process: dict[str, object], name: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{process['metrics_port']}/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def serve(cli: Cli, topology: dict[str, object]) -> Iterator[Serving]:
    """Run a deployment for as long as the context lasts."""
    path = cli.write(topology)
    up = cli("up", "-d", path, timeout=240)
    assert up.returncode == 0, up.stdout + up.stderr
    name = str(topology["name"])
    try:
        status = cli.status("--name", name)
        yield Serving(cli, path, status, str(status["endpoint"]))
    finally:
        down = cli("down", "--name", name)
        assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.engine.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def session_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with clean_cli(tmp_path_factory.mktemp("session")) as cli:
        yield cli


@pytest.fixture(scope="session")
def chat(session_cli: Cli) -> Iterator[Serving]:
    """SmolLM2 with one prefill and one decode engine."""
    with serve(session_cli, {"name": "chat", "prefill": 1, "decode": 1}) as serving:
        yield serving


@pytest.fixture
def pair(cli: Cli, tiny_model: Path) -> Callable[..., dict[str, object]]:
    """A topology of one prefill and one decode engine on the tiny model."""

    def topology(name: str = "pair", **changes: object) -> dict[str, object]:
        return {"name": name, "model": str(tiny_model), "prefill": 1, "decode": 1} | changes

    return topology
