"""Real deployments, started and stopped by the command line as a user would."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.engine.memory_files import MemoryFile, holders, memory_files
from tests.processes import Spawned, kill_all

PDCTL = Path(sys.executable).parent / "pdctl"
LIMIT_S = 20.0  # for what happens without a command that waits for it

Topology = Callable[..., dict[str, object]]


@dataclass(frozen=True)
class Cli:
    """Runs `pdctl` with a state folder of its own."""

    folder: Path
    memory: set[MemoryFile] = field(default_factory=set)  # the KV pools that its deployments were seen to share

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PDCTL_STATE_DIR": str(self.folder / "state"), "XDG_RUNTIME_DIR": str(self.folder / "run")}

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PDCTL, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def spawn(self, *arguments: str | Path) -> Spawned:
        return Spawned(
            [PDCTL, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def write(self, topology: dict[str, object]) -> Path:
        """Write a topology file; its router takes any free port where none is given."""
        path = self.folder / f"{topology.get('name', 'default')}.yaml"
        path.write_text(json.dumps({"router": {"port": 0}} | topology))
        return path

    def status(self, *arguments: str) -> dict[str, object]:
        answer = self("status", "--json", *arguments)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return json.loads(answer.stdout)

    def processes(self) -> list[psutil.Process]:
        """Every process that was started under this state folder, found through /proc and not through our books."""
        return [process for process in psutil.process_iter() if _is_ours(process, self.folder)]

    def note_memory(self, decodes: int = 1) -> None:
        """Remember which memory is shared; a decode engine shares its KV pool, and so must have been seen."""
        found = set().union(*(memory_files(process.pid) for process in self.processes()))
        assert len(found) == decodes, f"{len(found)} KV pools for {decodes} decode engines"
        self.memory.update(found)

    def check_gone(self) -> None:
        """Check that no process of ours is left, nor any that holds the KV memory."""
        left = [" ".join(process.cmdline()) for process in self.processes()]
        assert not left, f"processes left behind: {left}"
        assert holders(self.memory) == set(), "processes that still hold KV memory"


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("PDCTL_STATE_DIR") == str(folder / "state") and process.status() != "zombie"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@contextmanager
def clean_cli(folder: Path) -> Iterator[Cli]:
    """A command line whose deployments must be gone at the end."""
    cli = Cli(folder)
    (folder / "run").mkdir(mode=0o700)
    try:
        yield cli
        cli.check_gone()
    finally:
        kill_all(cli.processes())


@dataclass(frozen=True)
class Serving:
    """A running deployment."""

    cli: Cli
    topology: Path
    status: dict[str, object]
    url: str

    def pid(self, name: str) -> int:
        """The process of that name as it was when everything was ready."""
        return next(process["pid"] for process in self.status["processes"] if process["name"] == name)

    def metric(self, role: str, name: str) -> float:
        """Add up a metric over the engines of a role."""
        return sum(self._samples(process, name) for process in self.status["processes"] if process["role"] == role)

    @staticmethod
    def _samples(process: dict[str, object], name: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{process['metrics_port']}/metrics").text
        found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]
        assert found, f"{process['name']} has no metric {name}"
        return sum(found)


@contextmanager
def serve(cli: Cli, topology: dict[str, object]) -> Iterator[Serving]:
    """Run a deployment for as long as the context lasts."""
    path = cli.write(topology)
    up = cli("up", "-d", path, timeout=240)
    assert up.returncode == 0, up.stdout + up.stderr
    name = str(topology["name"])
    try:
        status = cli.status("--name", name)
        cli.note_memory(decodes=sum(process["role"] == "decode" for process in status["processes"]))
        yield Serving(cli, path, status, str(status["endpoint"]))
    finally:
        down = cli("down", "--name", name)
        assert down.returncode == 0, down.stdout + down.stderr


def wait_for_line(up: subprocess.Popen[str], words: str) -> None:
    """Read what a foreground `pdctl up` prints until a line has these words."""
    assert up.stdout is not None
    said = []
    for line in up.stdout:
        said.append(line)
        if words in line:
            return
    raise AssertionError(f"the output ended without {words!r}: {''.join(said)}")


def until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again at something that no event tells of."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s:g} s for: {what}"
        time.sleep(0.05)
