"""The state folder: what is known of each deployment on this machine, kept across launchers.

A deployment's folder, open to its user only, holds ``lock`` (held while it is started, changed or stopped),
``state.json``, ``plan.json``, ``topology.json``, ``token`` and, for this machine's agent, ``hosts/<host>/`` (see
pdctl/agent/paths.py). It stays after `down`, for its logs.
"""

import asyncio
import fcntl
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pdctl.agent.procfs import boot_id, read_stat
from pdctl.errors import NotFoundError, StateError
from pdctl.planning.plan import Plan
from pdctl.topology.models import Topology

DEFAULT_NAME = "default"  # of a topology that gives itself no name
_LOCK_POLL_S = 0.05

Model = TypeVar("Model", bound=BaseModel)


class BusyError(StateError):
    """Another pdctl starts or stops the deployment."""


class ProcessId(BaseModel):
    """A process that cannot be taken for a later one with the same pid."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start: int
    boot: str

    @classmethod
    def own(cls) -> Self:
        """This process."""
        stat = read_stat(os.getpid())
        return cls(pid=os.getpid(), start=stat.start if stat else 0, boot=boot_id())

    def is_alive(self) -> bool:
        """Whether it still lives."""
        stat = read_stat(self.pid)
        return stat is not None and stat.start == self.start and self.boot == boot_id()


class State(BaseModel):
    """What is recorded of a deployment beside its plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    run_id: str  # of this start; the tag that all its processes carry
    phase: Literal["starting", "verified", "changing", "stopping", "down"]
    owner: ProcessId  # who starts, changes or stops it
    started: float  # seconds since the epoch
    endpoint: str | None = None  # the router's URL
    reason: str | None = None  # why it is down
    machine: str = Field(default_factory=socket.gethostname)  # that started it: home folders can be shared


def state_root() -> Path:
    """$PDCTL_STATE_DIR, else pdctl in $XDG_STATE_HOME, else in ~/.local/state."""
    if own := os.environ.get("PDCTL_STATE_DIR"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state").absolute() / "pdctl"


def new_run_id() -> str:
    """A tag for the processes of one start."""
    return secrets.token_hex(8)


class DeploymentFolder:
    """One deployment's files. Whoever changes them holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def token_path(self) -> Path:
        """The file that holds the deployment's token."""
        return self.path / "token"

    @asynccontextmanager
    async def lock(self, wait_s: float) -> AsyncIterator[None]:
        """Hold the right to start or stop the deployment; raises BusyError when another keeps it longer."""
        with _storing(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = (self.path / "lock").open("a")
        with file:
            deadline = time.monotonic() + wait_s
            while not _locked(file.fileno()):
                if time.monotonic() >= deadline:
                    raise BusyError(self._busy())
                await asyncio.sleep(_LOCK_POLL_S)  # flock has no timeout
            yield

    def create_token(self) -> None:
        """Write a new token."""
        self.write_token(secrets.token_hex(32))

    def write_token(self, token: str) -> None:
        """Keep a token, for this user's eyes only."""
        with _storing(self.token_path):
            self.token_path.unlink(missing_ok=True)
            with open(os.open(self.token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(token)

    def read_token(self) -> str:
        """The token."""
        with _storing(self.token_path):
            return self.token_path.read_text()

    def read_plan(self) -> Plan | None:
        """The plan of the last start."""
        return self._read("plan.json", Plan)

    def write_plan(self, plan: Plan) -> None:
        """Keep the plan."""
        self._write("plan.json", plan)

    def read_next_plan(self) -> Plan | None:
        """The plan that a change leads to which has not come to its end."""
        return self._read("next-plan.json", Plan)

    def write_next_plan(self, plan: Plan | None) -> None:
        """Keep the plan that a change leads to; None: it has come to its end."""
        self._write_or_remove("next-plan.json", plan)

    def read_topology(self) -> Topology | None:
        """The topology that the plan is of; None where that is not known."""
        return self._read("topology.json", Topology)

    def write_topology(self, topology: Topology | None) -> None:
        """Keep the topology; None: it is not known."""
        self._write_or_remove("topology.json", topology)

    def read_state(self) -> State | None:
        """The state, or None where nothing was ever started."""
        return self._read("state.json", State)

    def write_state(self, state: State) -> None:
        """Keep the state."""
        self._write("state.json", state)

    def _read(self, name: str, model: type[Model]) -> Model | None:
        path = self.path / name
        with _storing(path):
            try:
                content = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            return model.model_validate_json(content)
        except ValidationError:
            raise StateError(
                f"{path} is damaged or of another version of pdctl: run the pdctl that wrote it, or end the"
                f" deployment's processes and remove {self.path}"
            ) from None

    def _write_or_remove(self, name: str, model: BaseModel | None) -> None:
        if model is not None:
            self._write(name, model)
            return
        with _storing(self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, model: BaseModel) -> None:
        """In one step: a reader sees the old content or the new, never half of it."""
        path = self.path / name
        temporary = self.path / f".{name}.{os.getpid()}"
        with _storing(path):
            try:
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    # What was not given stays so: in a topology some keys do not go together.
                    file.write(model.model_dump_json(indent=2, exclude_unset=isinstance(model, Topology)))
                    file.flush()
                    os.fsync(file.fileno())  # a power cut must not leave the new name with nothing in it
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _busy(self) -> str:
        state = self.read_state()
        by = f"pid {state.owner.pid}" if state is not None and state.owner.is_alive() else "another pdctl"
        return (
            f"deployment {self.name!r} is being started or stopped by {by}: wait for it"
            f" (`pdctl status --name {self.name} --watch`) or end it (`pdctl down --name {self.name}`)"
        )


class Store:
    """All deployments of this user on this machine."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or state_root()

    def folder(self, name: str) -> DeploymentFolder:
        """The folder of a deployment, which need not exist yet."""
        return DeploymentFolder(self.root / name)

    def choose(self, name: str | None) -> DeploymentFolder:
        """The deployment of that name; without one, the only one that runs, else the only or default one of all."""
        known = self.names()
        if name is not None and name not in known:
            raise NotFoundError(f"there is no deployment {name!r} here, only: {', '.join(known) or 'none'}")
        running = [] if name is not None else self.running_names()
        candidates = [name] if name is not None else running or known
        if len(candidates) == 1:
            return self.folder(candidates[0])
        if not candidates:
            raise NotFoundError("there is no deployment here: start one with `pdctl up`")
        if DEFAULT_NAME in candidates and not running:
            return self.folder(DEFAULT_NAME)
        several = "several deployments run" if running else "there are several deployments"
        raise NotFoundError(f"{several}: choose one with --name: {', '.join(candidates)}")

    def names(self) -> list[str]:
        """The deployments that have been started here at some time."""
        if not self.root.is_dir():
            return []
        return sorted(path.parent.name for path in self.root.glob("*/state.json"))

    def running_names(self) -> list[str]:
        """Those that have not been stopped. What cannot be read is passed over: it is said when that one is chosen."""
        return [name for name in self.names() if self._runs(name)]

    def _runs(self, name: str) -> bool:
        try:
            state = self.folder(name).read_state()
        except StateError:
            return False
        return state is not None and state.phase != "down"


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"the state folder cannot be used: {path}: {error.strerror}"
            " (free some space or permit it, or choose another folder with PDCTL_STATE_DIR)"
        ) from error


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
