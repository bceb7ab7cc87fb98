"""`pdctl restart`: start processes of a running deployment again."""

from typing import Annotated

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.restart import restart as restart_processes
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode


def restart(
    processes: Annotated[list[str], typer.Argument(help="Names of processes, as `pdctl status` shows them.")],
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds in which they must be ready (default: each step's own limit).")
    ] = None,
) -> None:
    """Stop processes where they still run, wait until the memory of their GPUs is free, and start them again.

    Ends when a request has gone through every pair that they are of. The other processes go on meanwhile.
    """
    terminal = Terminal()
    deployment = Deployment.attach(Store().choose(name))
    if not run_until_interrupted(_restart(deployment, processes, timeout, terminal)):
        terminal.error(f"interrupted: {', '.join(processes)} may not run: see `pdctl status`")
        raise typer.Exit(ExitCode.INTERRUPTED)


async def _restart(deployment: Deployment, processes: list[str], timeout_s: float | None, terminal: Terminal) -> None:
    try:
        async with deployment.folder.lock(wait_s=0):
            await restart_processes(deployment, processes, timeout_s=timeout_s, report=terminal.info)
        terminal.success(f"{', '.join(processes)} runs again")
    finally:
        await deployment.close()
