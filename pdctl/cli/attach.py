"""`pdctl attach`: the dashboard of a deployment that runs, whoever started it."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.live import show_deployment
from pdctl.deployment.adoption import adopt
from pdctl.deployment.store import DeploymentFolder, Store
from pdctl.errors import NotFoundError
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology


def attach(
    topology: Annotated[
        Path | None, typer.Argument(help="The topology file that it was started from (default: the one that runs).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name, instead of the topology's.")] = None,
) -> None:
    """Open the dashboard of a deployment that runs; leaving it, by q or Ctrl-C, changes nothing for the deployment.

    Without a terminal, its log lines and changes of state are printed until Ctrl-C.
    """
    terminal, store = Terminal(), Store()
    chosen = _take_up(load_topology(topology, name=name), store) if topology is not None else name
    folder = _running(store.choose(chosen))
    run_until_interrupted(show_deployment(folder, terminal.console))
    terminal.info(f"{folder.name} was left as it is: see `pdctl status --name {folder.name}`")


def _take_up(topology: Topology, store: Store) -> str:
    """The name of a topology's deployment; one that another machine has started on its hosts is made known here."""
    folder = store.folder(topology.name)
    state = folder.read_state()
    far = any(host.ssh for host in topology.hosts.values())
    if far and (state is None or state.phase == "down"):
        asyncio.run(_adopt(topology, folder))
    return topology.name


async def _adopt(topology: Topology, folder: DeploymentFolder) -> None:
    async with folder.lock(wait_s=0):
        await adopt(topology, folder)


def _running(folder: DeploymentFolder) -> DeploymentFolder:
    state = folder.read_state()
    if state is None or state.phase == "down":
        raise NotFoundError(f"deployment {folder.name!r} is down: start it with `pdctl up`, or see `pdctl logs`")
    return folder
