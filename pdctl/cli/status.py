"""`pdctl status`: what a deployment's processes do, with no launcher needed."""

import asyncio
from typing import Annotated

import typer
from rich.live import Live

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.status_table import render_status
from pdctl.deployment.deployment import Deployment
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
    shown = run_until_interrupted(_show(Deployment.attach(Store().choose(name)), json, watch, Terminal()))
    if not shown and not watch:  # watching ends no other way
        raise typer.Exit(ExitCode.INTERRUPTED)


async def _show(deployment: Deployment, json: bool, watch: bool, terminal: Terminal) -> None:
    try:
        if watch and terminal.is_interactive and not json:
            await _show_live(deployment, terminal)
        _print(await deployment.status(), json, terminal)
        while watch:
            await asyncio.sleep(INTERVAL_S)
            _print(await deployment.status(), json, terminal)
    finally:
        await deployment.close()


async def _show_live(deployment: Deployment, terminal: Terminal) -> None:
    with Live(console=terminal.console, auto_refresh=False) as live:
        while True:
            live.update(render_status(await deployment.status(), width=terminal.console.width), refresh=True)
            await asyncio.sleep(INTERVAL_S)


def _print(status: DeploymentStatus, json: bool, terminal: Terminal) -> None:
    if json:
        terminal.print_json(status.model_dump(mode="json"))
    else:
        terminal.print(render_status(status, width=terminal.console.width))
