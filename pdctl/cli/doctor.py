"""`pdctl doctor`: what would keep a topology from running, and what mends it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from pdctl.cli.terminal import Terminal
    from pdctl.doctor.finding import Finding
    from pdctl.topology.models import Topology

_STYLES = {"ok": "success", "warning": "warning"}


def doctor(
    topology: Annotated[Path | None, typer.Argument(help="The topology file (default: the embedded one).")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name, instead of the topology's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at every host of a topology for what would keep it from running; each finding says what mends it.

    Without a topology file: at this machine. Nothing is started or changed. The exit code is 15 if there is an error.
    """
    from pdctl.cli.terminal import Terminal
    from pdctl.doctor.finding import errors
    from pdctl.errors import ExitCode
    from pdctl.topology.loading import load_topology

    terminal = Terminal()
    loaded = load_topology(topology, name=name)
    findings = _examine(loaded, terminal, quiet=json)
    if json:
        terminal.print_json({"name": loaded.name, "findings": [finding._asdict() for finding in findings]})
    else:
        _show(loaded, findings, terminal)
    if errors(findings):
        raise typer.Exit(ExitCode.UNFIT)


def _examine(topology: "Topology", terminal: "Terminal", *, quiet: bool) -> "list[Finding]":
    import asyncio

    from pdctl.deployment.store import Store
    from pdctl.doctor.examination import examine

    store = Store()
    state = store.folder(topology.name).read_state()
    current = store.folder(topology.name).read_plan() if state and state.phase != "down" else None
    if quiet or not terminal.is_interactive:
        return asyncio.run(examine(topology, store.root, current=current))
    with terminal.console.status("") as status:
        return asyncio.run(examine(topology, store.root, current=current, report=status.update))


def _show(topology: "Topology", findings: "list[Finding]", terminal: "Terminal") -> None:
    """By host, what concerns them all after them, and the errors at the end."""
    from pdctl.doctor.finding import errors, warnings
    from pdctl.doctor.units import counted

    bad, doubtful = errors(findings), warnings(findings)
    for line in _lines(topology, [finding for finding in findings if finding.level != "error"]):
        terminal.print(line if terminal.is_interactive else line.plain)
    terminal.print(f"{topology.name}: {counted(len(bad), 'error')}, {counted(len(doubtful), 'warning')}")
    for finding in bad:
        terminal.error(str(finding), finding.remedy)


def _lines(topology: "Topology", findings: "list[Finding]") -> Iterator["Text"]:
    from rich.text import Text

    order = [*topology.hosts, ""]
    hosts = max((len(finding.host) for finding in findings), default=0)
    subjects = max((len(finding.subject) for finding in findings), default=0)
    for level, host, subject, text, remedy in sorted(findings, key=lambda finding: order.index(finding.host)):
        yield Text.assemble((f"{level:<7}", _STYLES[level]), f"  {host:<{hosts}}  {subject:<{subjects}}  {text}")
        if remedy:
            yield Text(f"{'':<9}{'':<{hosts}}  {'':<{subjects}}  {remedy}", "detail")
