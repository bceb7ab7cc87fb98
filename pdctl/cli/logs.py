"""`pdctl logs`: what a deployment's processes wrote, also after their death."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.lines import clean, process_colour
from pdctl.deployment.deployment import DEFAULT_TAIL, Deployment
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode


def logs(
    processes: Annotated[list[str] | None, typer.Argument(help="Names of processes (default: all).")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines, until Ctrl-C.")] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=0, help="How many of each process's last lines to begin with.")
    ] = DEFAULT_TAIL,
) -> None:
    """Show what a deployment's processes wrote since its last start, each line with its process in front."""
    deployment = Deployment.attach(Store().choose(name))
    shown = run_until_interrupted(_show(deployment, processes or (), follow, tail, Terminal()))
    if not shown and not follow:
        raise typer.Exit(ExitCode.INTERRUPTED)


async def _show(deployment: Deployment, processes: Sequence[str], follow: bool, tail: int, terminal: Terminal) -> None:
    names = [process.name for process in deployment.plan.processes]
    width = max(map(len, names))
    try:
        async for line in deployment.logs(processes, tail=tail, follow=follow):
            prefix = Text(f"{line.process:<{width}} | ", process_colour(line.process, names))
            terminal.console.print(prefix.append(clean(line.text), "default"), soft_wrap=True)
    finally:
        await deployment.close()
