"""A process as its agent tells of it."""

import signal

from pydantic import BaseModel, ConfigDict

from pdctl.deployment.models import ProcessState, Progress


class Snapshot(BaseModel):
    """What an agent answers for one process; `list`, `start`, `stop` and the event `process` have it."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    state: ProcessState
    exit_code: int | None = None  # negative: the signal that ended it
    uptime_s: float = 0.0
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    progress: Progress | None = None
    ports: dict[str, int] = {}  # that it has bound, by purpose
    warning: str | None = None
    last_lines: list[str] = []  # of its log, once it has exited

    @property
    def has_exited(self) -> bool:
        """Whether it has ended."""
        return self.exit_code is not None


def describe_exit(name: str, exit_code: int) -> str:
    """Say how a process ended: "decode-0 was killed by SIGKILL"."""
    if exit_code >= 0:
        return f"{name} exited with code {exit_code}"
    try:
        return f"{name} was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"{name} was killed by signal {-exit_code}"
