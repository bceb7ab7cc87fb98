"""A process as its agent tells of it."""

from pydantic import BaseModel, ConfigDict

from pdctl.agent.child import describe_exit as how_it_ended
from pdctl.deployment.models import ProcessState, Progress


class Snapshot(BaseModel):
    """What an agent answers for one process; `list`, `start`, `stop` and the event `process` have it."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    state: ProcessState
    exit_code: int | None = None  # negative: the signal that ended it
    stopped: bool = False  # it was told to
    restarts: int = 0
    restart_in_s: float | None = None  # while it is restarting: how long it still waits
    last_end: str | None = None  # how it ended, or while it lives its last life: "was killed by SIGKILL"
    uptime_s: float = 0.0
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    progress: Progress | None = None
    ports: dict[str, int] = {}  # that it has bound, by purpose
    warning: str | None = None
    last_lines: list[str] = []  # of its log, once it has exited

    @property
    def has_exited(self) -> bool:
        """Whether it has ended, and does not come back by itself."""
        return self.state in ("exited", "failed")

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None


def describe_exit(name: str, exit_code: int) -> str:
    """Say how a process ended: "decode-0 was killed by SIGKILL"."""
    return f"{name} {how_it_ended(exit_code)}"


def describe_end(snapshot: Snapshot) -> str:
    """Say the same of one that has ended, as its agent tells it, and whether it had been restarted."""
    end = f"{snapshot.name} {snapshot.last_end or how_it_ended(snapshot.exit_code or 0)}"
    return f"{end} and keeps failing (restarts: {snapshot.restarts})" if snapshot.state == "failed" else end
