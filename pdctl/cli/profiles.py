"""`pdctl profiles`: the engines and routers that can be started."""

from pathlib import Path
from typing import Annotated

import typer

profiles = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show the engines and routers that can be started, or check a profile of your own.",
)


@profiles.command("list")
def list_profiles() -> None:
    """Show the profiles that come with pdctl."""
    from rich.table import Table

    from pdctl.cli.terminal import Terminal
    from pdctl.profiles import engine_names, load_profile, load_router_profile, router_names

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for header in ("profile", "for", "protocol", "what it is"):
        table.add_column(header)
    for name in engine_names():
        profile = load_profile(name)
        table.add_row(name, "engine:", profile.protocol, profile.description)
    for name in router_names():
        router = load_router_profile(name)
        table.add_row(name, "router.kind:", ", ".join(router.protocols), router.description)
    Terminal().print(table)


@profiles.command()
def show(name: Annotated[str, typer.Argument(help="A profile's name, or the path of one.")]) -> None:
    """Print a profile as YAML, with what it takes over from the one that it extends."""
    from pdctl.cli.terminal import Terminal
    from pdctl.profiles.loading import profile_text

    Terminal().print(profile_text(name))


@profiles.command()
def check(path: Annotated[Path, typer.Argument(help="The file.")]) -> None:
    """Check a profile of your own, of an engine or of a router."""
    from pdctl.cli.terminal import Terminal
    from pdctl.profiles import load_profile, load_router_profile
    from pdctl.profiles.loading import is_router_file

    file = str(path.absolute())
    if is_router_file(path):
        router = load_router_profile(file)
        Terminal().success(f"{path}: router {router.name}, for engines that speak {', '.join(router.protocols)}")
        return
    profile = load_profile(file)
    Terminal().success(f"{path}: engine {profile.name}: {', '.join(profile.roles)}, protocol {profile.protocol}")
