"""`pdctl down`: end a deployment, and make sure that nothing of it is left."""

from typing import Annotated

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import Store
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import ExitCode, PdctlError


def down(
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every deployment that was started here.")] = False,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds that each process gets to end by itself (default: the plan's).")
    ] = None,
) -> None:
    """Drain and stop a deployment: router, decode, prefill; then check that none of its processes lives.

    Logs stay. It is no error if the deployment is down already.
    """
    terminal, store = Terminal(), Store()
    if all_ and name is not None:
        raise typer.BadParameter("--all and --name exclude each other")
    if name is None and not store.names():
        terminal.info("there is no deployment here")
        return
    names = store.running_names() if all_ else [store.choose(name).name]
    if not names:
        terminal.info("no deployment runs here")
    if not run_until_interrupted(_stop_each(names, store, grace, terminal)):
        terminal.error(f"interrupted: parts of {', '.join(names)} may still run: run `pdctl down` again")
        raise typer.Exit(ExitCode.INTERRUPTED)


async def _stop_each(names: list[str], store: Store, grace: float | None, terminal: Terminal) -> None:
    """One after the other; what goes wrong with one does not keep the others running. The last error is raised."""
    failure: PdctlError | None = None
    for name in names:
        try:
            await _stop(Deployment.attach(store.folder(name)), grace, terminal)
        except PdctlError as error:
            if failure is not None:
                terminal.error(str(failure), failure.detail)
            failure = error
    if failure is not None:
        raise failure


async def _stop(deployment: Deployment, grace: float | None, terminal: Terminal) -> None:
    try:
        already = deployment.state.phase == "down"
        await stop_deployment(deployment, grace_s=grace, report=terminal.info)
        terminal.success(f"{deployment.name} {'was down already' if already else 'is down'}: nothing of it runs")
    finally:
        await deployment.close()
