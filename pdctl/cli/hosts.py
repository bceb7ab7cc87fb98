"""`pdctl hosts`: the machines of a topology, and what they need."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from pdctl.cli.running import run_until_interrupted
from pdctl.cli.terminal import Terminal
from pdctl.errors import ExitCode, PdctlError
from pdctl.hosts.prepare import prepare_host
from pdctl.planning.probing import topology_host
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology
from pdctl.validation import nearest

hosts = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The machines of a topology, and what they need.",
)


@hosts.callback()
def _hosts() -> None:
    """Keep `prepare` a command of its own."""


@hosts.command()
def prepare(
    topology: Annotated[Path, typer.Argument(help="The topology file.")],
    names: Annotated[list[str] | None, typer.Argument(help="Which of its hosts (default: all reached by SSH).")] = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="A folder with all wheels that are needed, for hosts without an index."
        ),
    ] = None,
    python: Annotated[str | None, typer.Option(help="The interpreter there to make it with: 3.11 or newer.")] = None,
) -> None:
    """Make the environment of pdctl's own engine and router on hosts that have nothing of ours.

    The same version as here, in ~/.local/share/pdctl; where it is complete already, nothing is done.
    """
    terminal = Terminal()
    preparing = _Preparing(load_topology(topology), wheelhouse, python, terminal)
    if not run_until_interrupted(preparing.run(names or [])):
        terminal.error("interrupted: run it again to go on")
        raise typer.Exit(ExitCode.INTERRUPTED)


class _Preparing:
    """One `pdctl hosts prepare`: all hosts at once."""

    def __init__(self, topology: Topology, wheelhouse: Path | None, python: str | None, terminal: Terminal) -> None:
        self._topology = topology
        self._wheelhouse = wheelhouse
        self._python = python
        self._terminal = terminal

    async def run(self, names: list[str]) -> None:
        """Prepare the hosts; the first error is raised once all others are done."""
        chosen = names or [name for name, host in self._topology.hosts.items() if host.ssh]
        for name in chosen:
            if name not in self._topology.hosts:
                raise typer.BadParameter(f"unknown host {name!r}, {nearest(name, list(self._topology.hosts))}")
            if self._topology.hosts[name].ssh is None:
                raise typer.BadParameter(f"{name} is this machine: pdctl and its engine are installed here")
        if not chosen:
            self._terminal.info("no host of this topology is reached by SSH: nothing to do")
            return
        ends = await asyncio.gather(*(self._prepare(name) for name in chosen), return_exceptions=True)
        failed = [end for end in ends if isinstance(end, BaseException)]
        for error in failed[1:]:
            if not isinstance(error, PdctlError):
                raise error
            self._terminal.error(str(error))
        if failed:
            raise failed[0]

    async def _prepare(self, name: str) -> None:
        host = topology_host(self._topology, name)

        def report(line: str) -> None:
            self._terminal.info(f"{name}: {line}")

        python = await prepare_host(host, python=self._python, wheelhouse=self._wheelhouse, report=report)
        self._terminal.success(f"{name} is ready: {python}")
