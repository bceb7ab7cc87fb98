"""The dashboard where there is no terminal to draw on: prefixed lines."""

import asyncio

from rich.console import Console
from rich.text import Text

from pdctl.dashboard.layout import process_colour
from pdctl.dashboard.source import Source, read_status, run_until_first, statuses
from pdctl.dashboard.status_table import exit_reason, progress_text
from pdctl.dashboard.view_state import clean
from pdctl.deployment.models import DeploymentStatus, ProcessStatus

OWN_PREFIX = "pdctl"


async def run_plain(source: Source, console: Console, *, tail: int) -> None:
    """Write log lines and changes of state to ``console`` until cancelled."""
    view = _PlainView(console, await read_status(source))
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

    def __init__(self, console: Console, status: DeploymentStatus) -> None:
        self._console = console
        self._status = status
        self._say(changes(None, status))

    async def follow_status(self, source: Source) -> None:
        async for status in statuses(source):
            self._say(changes(self._status, status))
            self._status = status

    async def follow_logs(self, source: Source, tail: int) -> None:
        async for line in source.logs(follow=True, tail=tail):
            self._write(line.process, clean(line.text))
        await asyncio.Event().wait()  # the processes' output ended; their states still change

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._write(OWN_PREFIX, line)

    def _write(self, prefix: str, text: str) -> None:
        names = [process.name for process in self._status.processes]
        width = max(map(len, [OWN_PREFIX, *names]))
        line = Text(f"{prefix:<{width}} | ", process_colour(prefix, names)).append(text, "default")
        self._console.print(line, soft_wrap=True)


def _describe(process: ProcessStatus) -> str:
    """Return a process's state, with its progress in steps of a tenth."""
    if process.state == "exited" and process.exit_code is not None:
        return f"exited ({exit_reason(process.exit_code)})"
    if process.state == "ready":
        return f"ready (pid {process.pid})"
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
