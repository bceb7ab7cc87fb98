"""`pdctl up`: start a deployment; in the foreground, show and hold it until Ctrl-C."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, cast

import typer

from pdctl.cli.changing import DrainOption, Wanted, change_to, interrupted, show_difference
from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.live import show_deployment
from pdctl.deployment.apply import Report, prepare
from pdctl.deployment.changes import DRAIN_S, Limits
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import clear_way, hold, launch
from pdctl.deployment.port_reservation import PortRaces
from pdctl.deployment.store import Store
from pdctl.doctor.examination import refuse_unfit
from pdctl.errors import ExitCode, PdctlError
from pdctl.planning.topology_plan import plan_topology
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology


def up(
    topology: Annotated[Path | None, typer.Argument(help="The topology file (default: the embedded one).")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name, instead of the topology's.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready, and let it run.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds in which it must be ready (default: each step's own limit).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change what runs already without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be started or changed.")] = False,
    drain: DrainOption = DRAIN_S,
) -> None:
    """Start a deployment and show its dashboard; Ctrl-C drains and stops everything, a second one kills.

    Without a topology file: one router, one prefill and one decode engine on this machine with a small chat model.
    If it runs already, it is changed to what the file says now, while it serves; the difference is shown first.
    """
    terminal = Terminal()
    launcher = _Launcher(load_topology(topology, name=name), Limits(drain, timeout), terminal)
    if dry_run:
        run_until_interrupted(show_difference(launcher.topology, terminal))
    elif not run_until_interrupted(launcher.run(detach=detach, asks=not yes and sys.stdin.isatty())):
        launcher.say_interrupted()


class _Launcher:
    """One `pdctl up`."""

    def __init__(self, topology: Topology, limits: Limits, terminal: Terminal) -> None:
        self.name = topology.name
        self.topology = topology
        self._was_ready = False
        self._is_change = False
        self._store = Store()
        self._folder = self._store.folder(self.name)
        self._limits = limits
        self._terminal = terminal
        self._races = PortRaces()

    async def run(self, *, detach: bool, asks: bool) -> None:
        """Start it, or change what runs already; in the foreground, return when somebody else has stopped it."""
        async with AsyncExitStack() as lock:
            await lock.enter_async_context(self._folder.lock(wait_s=0))
            running = await clear_way(self._folder)
            if running is not None:
                await self._change(running, asks=asks)
                return
            deployment = await self._prepare()
            try:
                await (self._serve_detached(deployment) if detach else self._serve_in_view(deployment, lock))
            finally:
                await deployment.close()

    def say_interrupted(self) -> None:
        """Say what is left after an interruption, as it is recorded: it may have come at any moment."""
        state = self._folder.read_state()
        if self._is_change:
            raise interrupted(self.name, self._terminal)
        if state is not None and state.phase != "down":
            self._terminal.error(
                f"interrupted: {self.name} may still run: see `pdctl status --name {self.name}`, end it with"
                f" `pdctl down --name {self.name}`"
            )
            raise typer.Exit(ExitCode.INTERRUPTED)
        if not self._was_ready:
            self._terminal.error("interrupted before the deployment was ready: nothing of it runs")
            raise typer.Exit(ExitCode.INTERRUPTED)
        self._terminal.success(f"{self.name} is down: nothing of it runs")

    async def _change(self, deployment: Deployment, *, asks: bool) -> None:
        self._is_change = True
        try:
            wanted = Wanted(self.topology)
            await change_to(deployment, wanted, self._limits, self._terminal, dry_run=False, asks=asks)
        finally:
            await deployment.close()

    async def _prepare(self) -> Deployment:
        root = self._store.root
        topology, profile, inventories, plan = await plan_topology(self.topology, root, taken=self._races.taken)
        for finding in await refuse_unfit(topology, profile, inventories, plan, root):
            self._terminal.warning(f"{finding}: {finding.remedy}" if finding.remedy else str(finding))
        return prepare(plan, self._folder, topology)

    async def _launch(self, deployment: Deployment, report: Report = lambda text: None) -> None:
        """Start it; where another process was faster to take a port, with others."""
        while True:
            try:
                await launch(deployment, timeout_s=self._limits.ready_s, report=report)
                return
            except PdctlError as error:
                if not self._races.lost(error, deployment.plan):
                    raise
                report(f"{error}: planning again with other ports")
            again = await self._prepare()
            deployment.take_plan(again.plan)
            await again.close()

    async def _serve_detached(self, deployment: Deployment) -> None:
        await self._launch(deployment, self._terminal.info)
        endpoint = deployment.state.endpoint
        self._terminal.success(f"{self.name} is ready at {endpoint}")
        body = '{"messages":[{"role":"user","content":"What is the capital of France?"}]}'
        self._terminal.print(f"curl {endpoint}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")

    async def _serve_in_view(self, deployment: Deployment, lock: AsyncExitStack) -> None:
        """Leaving the view ends the deployment as Ctrl-C does, but is no second Ctrl-C once that has begun."""
        view = asyncio.create_task(show_deployment(self._folder, self._terminal.console, quit_label="stop and quit"))
        serving = cast("asyncio.Task[None]", asyncio.current_task())

        def on_quit(_: object) -> None:
            if not serving.cancelling() and deployment.state.phase != "stopping":
                serving.cancel()

        view.add_done_callback(on_quit)
        try:
            await self._serve(deployment, lock)
        except asyncio.CancelledError:
            if view.done() and not view.cancelled():
                view.result()  # raises what ended it, if it was not the user
            raise
        finally:
            view.remove_done_callback(on_quit)
            view.cancel()
            await asyncio.wait({view})

    async def _serve(self, deployment: Deployment, lock: AsyncExitStack) -> None:
        await self._launch(deployment)
        self._was_ready = True
        if not self._terminal.is_interactive:
            self._terminal.success(f"{self.name} is ready at {deployment.state.endpoint}")
        await lock.aclose()  # from here on, `pdctl down` may stop it
        await hold(deployment)
        self._terminal.info(f"{self.name} was stopped by another pdctl")
