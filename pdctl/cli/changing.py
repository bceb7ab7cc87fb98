"""What the commands have in common that change a running deployment."""

import asyncio
import sys
from collections.abc import Callable, Collection
from typing import Annotated, NamedTuple

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.deployment.changes import Limits, make_change, propose
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.port_reservation import PortRaces
from pdctl.deployment.restart import refuse_unless_ready
from pdctl.deployment.store import DeploymentFolder, Store
from pdctl.errors import ExitCode, PdctlError, StateError
from pdctl.planning.change_text import describe
from pdctl.planning.topology_plan import plan_topology
from pdctl.topology.models import Topology

DrainOption = Annotated[
    float, typer.Option(min=0, help="Seconds for the requests in flight at an engine that is taken out.")
]
ReadyOption = Annotated[
    float | None, typer.Option(min=1, help="Seconds in which what is started must serve (default: each step's own).")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]


class Wanted(NamedTuple):
    """What a deployment is to be; `leaving`: engines that must not stay."""

    topology: Topology
    leaving: Collection[str] = ()


def change_running(
    folder: DeploymentFolder, want: Callable[[Deployment, Topology], Wanted], limits: Limits, *, dry_run: bool
) -> None:
    """Run a command that makes another topology of the one that is deployed."""
    terminal = Terminal()
    if not run_until_interrupted(_change_running(folder, want, limits, terminal, dry_run=dry_run)):
        raise interrupted(folder.name, terminal)


def interrupted(name: str, terminal: Terminal) -> typer.Exit:
    """Say what an interrupted change has left."""
    terminal.error(f"interrupted: {name} is as it was before: see `pdctl status --name {name}`")
    return typer.Exit(ExitCode.INTERRUPTED)


async def change_to(
    deployment: Deployment, wanted: Wanted, limits: Limits, terminal: Terminal, *, dry_run: bool, asks: bool = False
) -> None:
    """Show what has to change, and change it. The caller holds the folder's lock, unless it is a dry run."""
    races = PortRaces()
    while True:
        proposal = await propose(deployment, wanted.topology, leaving=wanted.leaving, taken=races.taken)
        change, endpoint = proposal.change, deployment.state.endpoint
        for line in describe(change):
            terminal.print(line)
        if not change.changes_processes and deployment.state.phase == "verified" and change.current == change.wanted:
            terminal.info(f"{deployment.name} runs already, at {endpoint}: nothing was changed")
            return
        if dry_run or (asks and change.changes_processes and not await _confirmed()):
            terminal.info("nothing was changed")
            return
        try:
            await make_change(deployment, proposal, limits, terminal.info)
            break
        except PdctlError as error:
            if not races.lost(error, change.wanted):
                raise
            terminal.info(f"{error}: planning again with other ports")
    terminal.success(f"{deployment.name} was changed; it serves at {deployment.state.endpoint}")


async def show_difference(topology: Topology, terminal: Terminal) -> None:
    """Show what `up` would start or change."""
    store = Store()
    folder = store.folder(topology.name)
    state = folder.read_state()
    if state is None or state.phase == "down":
        plan = (await plan_topology(topology, store.root)).plan
        for process in plan.processes:
            terminal.print(f"+ {process.name} on {process.host}")
        return
    deployment = Deployment.attach(folder)
    try:
        await change_to(deployment, Wanted(topology), Limits(), terminal, dry_run=True)
    finally:
        await deployment.close()


async def _change_running(
    folder: DeploymentFolder,
    want: Callable[[Deployment, Topology], Wanted],
    limits: Limits,
    terminal: Terminal,
    *,
    dry_run: bool,
) -> None:
    async with folder.lock(wait_s=0):
        deployment = Deployment.attach(folder)
        try:
            refuse_unless_ready(deployment)
            topology = folder.read_topology()
            if topology is None:
                raise StateError(f"the topology of {folder.name} is not known here: change its file, and `pdctl up` it")
            await change_to(deployment, want(deployment, topology), limits, terminal, dry_run=dry_run)
        finally:
            await deployment.close()


async def _confirmed() -> bool:
    """Ask the user; may be cancelled, unlike a read that waits."""
    sys.stdout.write("Make this change? [y/N] ")
    sys.stdout.flush()
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline().strip().lower() in ("y", "yes")
