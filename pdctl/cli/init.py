"""`pdctl init`: a first topology file."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("topology.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented topology file that fits this machine."""
    import asyncio

    from pdctl.cli.terminal import Terminal
    from pdctl.errors import PdctlError

    if path.exists() and not force:
        raise typer.BadParameter(f"{path} exists: give another path, or --force to overwrite it")
    text = asyncio.run(_starter(path))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PdctlError(f"{path}: cannot be written: {error.strerror}") from None
    Terminal().success(f"Wrote {path}. Start it with `pdctl up {path}`.")


async def _starter(path: Path) -> str:
    from pdctl.deployment.store import state_root
    from pdctl.hosts.open import open_host
    from pdctl.planning.inventory import Inventory
    from pdctl.planning.starter import PORTS, write_starter
    from pdctl.profiles import load_profile
    from pdctl.topology.fields import HERE, is_safe_name

    answer = await open_host(HERE).probe(state_root(), PORTS)
    name = path.stem if is_safe_name(path.stem) and path.stem != "topology" else "default"
    return write_starter(str(path), name, load_profile("builtin"), Inventory.model_validate(answer))
