"""The dashboard where there is no terminal to draw on: prefixed lines."""

import asyncio

from rich.console import Console
from rich.text import Text

from pdctl.dashboard.lines import clean, process_colour
from pdctl.dashboard.source import Source, log_lines, run_until_first, statuses
from pdctl.dashboard.status_table import exit_reason, progress_text
from pdctl.deployment.models import DeploymentStatus, ProcessStatus
from pdctl.errors import PdctlError

OWN_PREFIX = "pdctl"


async def run_plain(source: Source, console: Console, *, tail: int) -> None:
    """Write log lines and changes of state to ``console`` until cancelled."""
    view = _PlainView(console)
    await run_until_first(view.follow_status(source), view.follow_logs(source, tail))


def changes(before: DeploymentStatus | None, after: DeploymentStatus) -> list[str]:
    """Return what is new in ``after``, one line each."""
    known = {process.name: process for process in before.processes} if before else {}
    lines = []
    for process in after.processes:
        said = _describe(process)
        if process.name not in known or said != _describe(known[process.name]):
            lines.append(f"{process.name}: {said}")
    if before is None or (before.state, before.reason) != (after.state, after.reason):
        lines.append(_headline(after))
    return lines


class _PlainView:
    """Writes lines; knows the last status."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: DeploymentStatus | None = None
        self._first = asyncio.Event()  # the first status has come: its names make the width of the prefixes
        self._trouble = ""

    async def follow_status(self, source: Source) -> None:
        async for status in statuses(source, self._tell):
            before, self._status, self._trouble = self._status, status, ""
            self._say(changes(before, status))
            self._first.set()

    async def follow_logs(self, source: Source, tail: int) -> None:
        await self._first.wait()
        async for line in log_lines(source, tail, self._tell):
            self._write(line.process, clean(line.text))

    def _tell(self, trouble: PdctlError) -> None:
        if str(trouble) != self._trouble:
            self._trouble = str(trouble)
            self._say([self._trouble])

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._write(OWN_PREFIX, line)

    def _write(self, prefix: str, text: str) -> None:
        names = [process.name for process in self._status.processes] if self._status else []
        width = max(map(len, [OWN_PREFIX, *names]))
        text = text.encode(self._console.encoding, "replace").decode(self._console.encoding)
        line = Text(f"{prefix:<{width}} | ", process_colour(prefix, names)).append(text, "default")
        self._console.print(line, soft_wrap=True)


def _describe(process: ProcessStatus) -> str:
    """Return a process's state, with its progress in steps of a tenth."""
    if process.state in ("exited", "failed", "restarting") and process.exit_code is not None:
        return f"{process.state} ({exit_reason(process.exit_code)})"
    if process.state == "ready":
        return f"ready (pid {process.pid})" + ", draining" * process.draining
    if process.state == "starting" and process.progress is not None:
        done, total = process.progress.done, process.progress.total
        tenths = done * 10 // total if total > 0 else 0
        return progress_text(process.progress.model_copy(update={"done": tenths, "total": 10}))
    return process.state


def _headline(status: DeploymentStatus) -> str:
    parts = [
        f"{status.name} is {status.state}",
        status.reason or "",
        (status.endpoint or "") * (status.state == "ready"),
    ]
    return ": ".join(part for part in parts if part)
