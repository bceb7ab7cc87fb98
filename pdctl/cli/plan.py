"""`pdctl plan`: what `up` would start."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pdctl.cli.terminal import Terminal
    from pdctl.planning.plan import Plan, ProcessPlan


def plan(
    topology: Annotated[Path | None, typer.Argument(help="The topology file (default: the embedded one).")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name, instead of the topology's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what differs from what runs under that name.")] = False,
) -> None:
    """Show what `up` would start: every process with its command line, environment, ports, GPUs and NICs.

    Nothing is started or changed. Values of variables and flags that are named like secrets are hidden.
    """
    from pdctl.cli.terminal import Terminal
    from pdctl.planning.redaction import redact

    terminal = Terminal()
    if diff:
        _show_difference(topology, name, terminal)
        return
    made = redact(_make_plan(topology, name, terminal))
    if json:
        terminal.print_json(made.model_dump(mode="json"))
        return
    terminal.print(f"{made.name}: {made.model} on engine {made.engine}\n")
    terminal.print(_table(made))
    for process in made.processes:
        terminal.print(f"\n{process.name}\n  {_command_line(process)}")


def _show_difference(path: Path | None, name: str | None, terminal: "Terminal") -> None:
    import asyncio

    from pdctl.cli.changing import show_difference
    from pdctl.topology.loading import load_topology

    asyncio.run(show_difference(load_topology(path, name=name), terminal))


def _make_plan(path: Path | None, name: str | None, terminal: "Terminal") -> "Plan":
    import asyncio

    from pdctl.deployment.store import state_root
    from pdctl.planning.planner import make_plan, missing_engines
    from pdctl.planning.probing import probe_hosts
    from pdctl.profiles import load_profile
    from pdctl.topology.loading import load_topology

    topology = load_topology(path, name=name)
    profile = load_profile(topology.engine)
    inventories = asyncio.run(probe_hosts(topology, profile, state_root()))
    for problem in missing_engines(topology, profile, inventories):
        terminal.info(f"warning: {problem}")
    return make_plan(topology, profile, inventories)


def _table(plan: "Plan") -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for header in ("process", "host", "address", "ports", "gpus", "nics"):
        table.add_column(header)
    for process in plan.processes:
        ports = ", ".join(f"{purpose} {port or '(any free)'}" for purpose, port in process.ports.items())
        gpus = ", ".join(map(str, process.gpus)) or "-"
        table.add_row(process.name, process.host, process.address, ports, gpus, ", ".join(process.nics) or "-")
    return table


def _command_line(process: "ProcessPlan") -> str:
    from shlex import join

    variables = [f"{name}={value}" for name, value in process.env.items()]
    return join(["env", *variables, *process.argv] if variables else process.argv)
