"""`pdctl restart`: start processes of a running deployment again."""

from typing import Annotated

import typer

from pdctl.cli.changing import DrainOption, ReadyOption, interrupted
from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.deployment.changes import DRAIN_S, Limits
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.restart import restart as restart_processes
from pdctl.deployment.restart import restart_rolling
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode


def restart(
    processes: Annotated[
        list[str] | None, typer.Argument(help="Their names, as `pdctl status` shows them (with --rolling: or all).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One engine after the other, drained first: no request is refused.")
    ] = False,
    drain: DrainOption = DRAIN_S,
    timeout: ReadyOption = None,
) -> None:
    """Stop processes where they still run, wait until the memory of their GPUs is free, and start them again.

    Ends when a request has gone through every pair that they are of. The other processes go on meanwhile.
    """
    if not processes and not rolling:
        raise typer.BadParameter("name the processes, or restart all engines with --rolling")
    terminal = Terminal()
    deployment = Deployment.attach(Store().choose(name))
    limits = Limits(drain, timeout) if rolling else None
    if run_until_interrupted(_restart(deployment, processes or [], timeout, limits, terminal)):
        return
    if rolling:
        raise interrupted(deployment.name, terminal)
    terminal.error(f"interrupted: {', '.join(processes or [])} may not run: see `pdctl status`")
    raise typer.Exit(ExitCode.INTERRUPTED)


async def _restart(
    deployment: Deployment, processes: list[str], timeout_s: float | None, limits: Limits | None, terminal: Terminal
) -> None:
    """`limits`: of a rolling one."""
    try:
        async with deployment.folder.lock(wait_s=0):
            deployment.take_plan(deployment.folder.read_plan() or deployment.plan)  # it may have been changed meanwhile
            if limits is not None:
                await restart_rolling(deployment, processes, limits, terminal.info)
            else:
                await restart_processes(deployment, processes, timeout_s=timeout_s, report=terminal.info)
        terminal.success(f"{', '.join(processes) or 'every engine'} runs again")
    finally:
        await deployment.close()
