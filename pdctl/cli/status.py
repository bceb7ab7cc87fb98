"""`pdctl status`: what a deployment's processes do, with no launcher needed."""

import asyncio
from time import monotonic
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.history import History, graph_lines
from pdctl.dashboard.live import LiveDeployment
from pdctl.dashboard.run import can_draw
from pdctl.dashboard.status_table import render_status
from pdctl.dashboard.traffic import Traffic
from pdctl.deployment.models import DeploymentStatus
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode

INTERVAL_S = 1.0


def status(
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
) -> None:
    """Show the state and load of a deployment and of each of its processes."""
    shown = run_until_interrupted(_show(LiveDeployment(Store().choose(name)), json, watch, Terminal()))
    if not shown and not watch:  # watching ends no other way
        raise typer.Exit(ExitCode.INTERRUPTED)


async def _show(deployment: LiveDeployment, json: bool, watch: bool, terminal: Terminal) -> None:
    try:
        if watch and can_draw(terminal.console) and not json:
            await _show_live(deployment, terminal.console)
        _print(await deployment.status(), json, terminal)
        while watch:
            await asyncio.sleep(INTERVAL_S)
            _print(await deployment.status(), json, terminal)
    finally:
        await deployment.close()


async def _show_live(deployment: LiveDeployment, console: Console) -> None:
    traffic, history = Traffic(), History()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = await deployment.status()
            traffic.update(status, monotonic())
            history.add(traffic, monotonic())
            graphs = graph_lines(history, console.width)
            live.update(Group(render_status(status, width=console.width), *graphs), refresh=True)
            await asyncio.sleep(INTERVAL_S)


def _print(status: DeploymentStatus, json: bool, terminal: Terminal) -> None:
    if json:
        terminal.print_json(status.model_dump(mode="json"))
    else:
        terminal.print(render_status(status, width=terminal.console.width))
