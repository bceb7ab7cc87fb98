"""`pdctl scale`: more engines, or fewer, while the deployment serves."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from pdctl.cli.changing import DrainOption, DryRunOption, ReadyOption, Wanted, change_running
from pdctl.deployment.changes import DRAIN_S, Limits
from pdctl.deployment.store import Store
from pdctl.topology.models import ROLES
from pdctl.topology.resizing import resize

if TYPE_CHECKING:
    from pdctl.topology.resizing import Place

_COUNT = re.compile(rf"({'|'.join(ROLES)})(?:\[(\d+)\])?=(\d+)")


def scale(
    counts: Annotated[
        list[str],
        typer.Argument(metavar="ROLE=N...", help="As in prefill=3 decode=2; prefill[0]=2: of one of several groups."),
    ],
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    drain: DrainOption = DRAIN_S,
    timeout: ReadyOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Have so many engines of a role. New ones serve before others go; those are drained first.

    What cannot be done is undone. Of several groups of a role, the last one changes.
    """
    wanted = dict(map(_parse, counts))
    change_running(
        Store().choose(name),
        lambda _, topology: Wanted(resize(topology, wanted)),
        Limits(drain, timeout),
        dry_run=dry_run,
    )


def _parse(text: str) -> "tuple[Place, int]":
    match = _COUNT.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"expected {'|'.join(ROLES)}=NUMBER, such as prefill=3 or prefill[0]=3, got {text!r}")
    role = next(role for role in ROLES if role == match[1])
    return (role, int(match[2]) if match[2] else None), int(match[3])
