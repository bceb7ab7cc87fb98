"""Texts that are read over the whole screen: the plan, the notes in full, what the keys do."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

from pdctl.dashboard.lines import clean
from pdctl.dashboard.notes import Note
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.redaction import redact
from pdctl.topology.fields import Secret
from pdctl.topology.restart import Restart

_FRAME_ROWS = 2  # the title and the keys


@dataclass
class Page:
    """A text that is scrolled through."""

    title: str
    lines: Sequence[str]
    top: int = 0  # the first row that is shown

    def rows(self, size: tuple[int, int]) -> list[str]:
        """Return the rows that a terminal of ``size`` (columns, rows) shows."""
        self.scroll(0, size)
        return self._folded(size[0])[self.top : self.top + _height(size)]

    def scroll(self, back: int, size: tuple[int, int]) -> None:
        """Move back (negative: on) by so many rows, as far as there are some."""
        last = max(0, len(self._folded(size[0])) - _height(size))
        self.top = min(max(0, self.top - back), last)

    def page(self, size: tuple[int, int]) -> int:
        """Return by how many rows a page moves."""
        return max(1, _height(size) - 1)

    def _folded(self, width: int) -> list[str]:
        return [row for line in self.lines for row in _fold(line, max(1, width))]


def plan_page(plan: Plan, name: str | None) -> Page:
    """Return the plan, without secrets: all of it, or one process."""
    shown = redact(plan)
    processes = [process for process in shown.processes if name in (None, process.name)]
    lines = [] if name else _head(shown)
    for process in processes:
        lines += [*_process(process), ""]
    return Page(f"plan of {name or shown.name}", lines[:-1])


def notes_page(notes: Sequence[Note], now: float) -> Page:
    """Return all notes in full."""
    return Page("notes", [line for note in notes for line in (note.line(now), "")][:-1] or ["there is nothing to note"])


def help_page(keys: Iterable[tuple[str, str]]) -> Page:
    """Return what the keys do."""
    return Page("keys", [*(f"{key:<12} {text}" for key, text in keys), "", *_GRAPHS])


_GRAPHS = (
    "tok/s, TTFT, TPOT, KV and waiting are drawn over the last 5 minutes, each from 0 to its own highest value.",
    "TTFT and TPOT are means over 5 s; waiting counts requests at the router and at engines.",
)


def _head(plan: Plan) -> list[str]:
    versions = "".join(f", {version} on {host}" for host, version in plan.engine_versions.items())
    hosts = [f"host {host.name}: {host.ssh or 'this machine'}, address {host.address}" for host in plan.hosts.values()]
    return [f"{plan.name}: {plan.model} on engine {plan.engine}{versions}", *hosts, ""]


def _process(process: ProcessPlan) -> list[str]:
    ports = ", ".join(f"{purpose} {port or '(any free)'}" for purpose, port in process.ports.items())
    figures = [
        ("role", process.role),
        ("host", f"{process.host}, address {process.address}"),
        ("ports", ports),
        ("gpus", ", ".join(map(str, process.gpus))),
        ("nics", ", ".join(process.nics)),
        ("ready", f"{process.readiness.kind}, within {process.readiness.timeout_s:g} s"),
        ("stop", f"killed {process.stop_grace_s:g} s after it was told to"),
        ("again", _restart(process.restart)),
        ("in", process.workdir),
    ]
    lines = [process.name, *(f"  {name:<6} {text}" for name, text in figures if text)]
    lines += [f"  env    {name}={clean(value)}" for name, value in process.env.items()]
    lines += [f"  secret {name} from {_source(secret)}" for name, secret in process.secrets.items()]
    return [*lines, *(f"  {line}" for line in _command(process.argv))]


def _restart(restart: Restart) -> str:
    if restart.policy == "never":
        return "never"
    return f"{restart.policy}, after {restart.backoff_s:g} to {restart.max_backoff_s:g} s, {restart.max_restarts} times"


def _source(secret: Secret) -> str:
    return f"the file {secret.file}" if secret.file else f"the variable {secret.env}"


def _command(argv: Sequence[str]) -> list[str]:
    """A flag and its values a line."""
    lines: list[list[str]] = [[]]
    for argument in argv:
        if argument.startswith("-"):
            lines.append([])
        lines[-1].append(clean(shlex.quote(argument)))
    first, *rest = [" ".join(line) for line in lines]
    return [f"argv   {first}", *(f"         {line}" for line in rest)]


def _height(size: tuple[int, int]) -> int:
    return max(1, size[1] - _FRAME_ROWS)


def _fold(line: str, width: int) -> list[str]:
    """Return a line as rows of at most ``width``, cut between words where it can be; further ones are indented."""
    indent = min(len(line) - len(line.lstrip()) + 2, width // 2)
    rows, rest = [], line
    while cell_len(rest) > width:
        row = chop_cells(rest, width)[0]
        space = row.rfind(" ")
        row = row[:space] if space > indent else row
        if not row.strip():
            break  # a character that is wider than the screen
        rows.append(row)
        rest = " " * indent + rest[len(row) :].lstrip()
    return [*rows, rest]
