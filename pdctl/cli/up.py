"""`pdctl up`: start a deployment; in the foreground, show and hold it until Ctrl-C."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, cast

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.dashboard.run import run_dashboard
from pdctl.deployment.apply import prepare
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import clear_way, hold, launch
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode, PlanError
from pdctl.planning.planner import make_plan, missing_engines
from pdctl.planning.probing import probe_hosts
from pdctl.profiles import load_profile
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology


def up(
    topology: Annotated[Path | None, typer.Argument(help="The topology file (default: the embedded one).")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name, instead of the topology's.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready, and let it run.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds in which it must be ready (default: each step's own limit).")
    ] = None,
) -> None:
    """Start a deployment and show its dashboard; Ctrl-C drains and stops everything, a second one kills.

    Without a topology file: one router, one prefill and one decode engine on this machine with a small chat model.
    """
    terminal = Terminal()
    launcher = _Launcher(load_topology(topology, name=name), timeout, terminal)
    if not run_until_interrupted(launcher.run(detach=detach)):
        launcher.say_interrupted()


class _Launcher:
    """One `pdctl up`."""

    def __init__(self, topology: Topology, timeout_s: float | None, terminal: Terminal) -> None:
        self.name = topology.name
        self._was_ready = False
        self._topology = topology
        self._store = Store()
        self._folder = self._store.folder(self.name)
        self._timeout_s = timeout_s
        self._terminal = terminal

    async def run(self, *, detach: bool) -> None:
        """Start it, unless it runs already; in the foreground, return when somebody else has stopped it."""
        async with AsyncExitStack() as lock:
            await lock.enter_async_context(self._folder.lock(wait_s=0))
            running = await clear_way(self._folder)
            if running is not None:
                await self._say_already(running)
                return
            deployment = await self._prepare()
            try:
                await (self._serve_detached(deployment) if detach else self._serve_in_view(deployment, lock))
            finally:
                await deployment.close()

    def say_interrupted(self) -> None:
        """Say what is left after an interruption, as it is recorded: it may have come at any moment."""
        state = self._folder.read_state()
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

    async def _say_already(self, deployment: Deployment) -> None:
        self._terminal.info(f"{self.name} runs already, at {deployment.state.endpoint}: nothing was changed")
        await deployment.close()

    async def _prepare(self) -> Deployment:
        profile = load_profile(self._topology.engine)
        inventories = await probe_hosts(self._topology, profile, self._store.root)
        for problem in missing_engines(self._topology, profile, inventories):
            raise PlanError(problem)
        return prepare(make_plan(self._topology, profile, inventories), self._folder)

    async def _serve_detached(self, deployment: Deployment) -> None:
        await launch(deployment, timeout_s=self._timeout_s, report=self._terminal.info)
        endpoint = deployment.state.endpoint
        self._terminal.success(f"{self.name} is ready at {endpoint}")
        body = '{"messages":[{"role":"user","content":"What is the capital of France?"}]}'
        self._terminal.print(f"curl {endpoint}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")

    async def _serve_in_view(self, deployment: Deployment, lock: AsyncExitStack) -> None:
        """Leaving the view ends the deployment as Ctrl-C does, but is no second Ctrl-C once that has begun."""
        view = asyncio.create_task(run_dashboard(deployment, self._terminal.console, quit_label="stop and quit"))
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
        await launch(deployment, timeout_s=self._timeout_s)
        self._was_ready = True
        if not self._terminal.is_interactive:
            self._terminal.success(f"{self.name} is ready at {deployment.state.endpoint}")
        await lock.aclose()  # from here on, `pdctl down` may stop it
        await hold(deployment)
        self._terminal.info(f"{self.name} was stopped by another pdctl")
