"""`pdctl role`: turn an engine into one of another role."""

from typing import TYPE_CHECKING, Annotated

import typer

from pdctl.cli.changing import DrainOption, DryRunOption, ReadyOption, Wanted, change_running
from pdctl.deployment.changes import DRAIN_S, Limits
from pdctl.deployment.store import Store
from pdctl.errors import NotFoundError, PlanError
from pdctl.planning.running import engines_of
from pdctl.profiles import EngineRole
from pdctl.topology.resizing import turn

if TYPE_CHECKING:
    from pdctl.deployment.deployment import Deployment
    from pdctl.topology.models import Topology


def role(
    engine: Annotated[str, typer.Argument(help="Its name, as `pdctl status` shows it: prefill-1.")],
    role: Annotated[EngineRole, typer.Argument(help="What it is to be.")],
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    drain: DrainOption = DRAIN_S,
    timeout: ReadyOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Turn an engine into one of another role: one of that role is started in its place, under a name of its own.

    It takes the GPUs of the other where no others are free: only then does the other end first. What cannot be done is
    undone.
    """

    def want(deployment: "Deployment", topology: "Topology") -> Wanted:
        return _turned(deployment, topology, engine, role)

    change_running(Store().choose(name), want, Limits(drain, timeout), dry_run=dry_run)


def _turned(deployment: "Deployment", topology: "Topology", name: str, into: EngineRole) -> Wanted:
    engines = {engine.name: engine for engine in engines_of(deployment.plan)}
    engine = engines.get(name)
    if engine is None:
        raise NotFoundError(f"deployment {deployment.name!r} has no engine {name!r}, only {', '.join(engines)}")
    if engine.role == into:
        raise PlanError(f"{name} is a {into} engine already")
    return Wanted(turn(topology, engine.role, engine.head.group, engine.head.gpus, into), [name])
