"""The command `pdctl`: its commands, global options and what happens to an error."""

from importlib import import_module
from typing import Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from pdctl import __version__
from pdctl.errors import ExitCode, PdctlError

Private: TypeAlias = Any  # typer does not export the types of its contexts and commands

# Each command is what has that name in pdctl/cli/<name>.py, imported when it is used: `pdctl --help` stays fast.
COMMANDS = {
    "up": "Start a deployment and show its dashboard.",
    "attach": "Open the dashboard of a deployment that runs.",
    "status": "Show the state and load of a deployment.",
    "logs": "Show what a deployment's processes wrote.",
    "restart": "Start processes of a running deployment again.",
    "scale": "Have more engines, or fewer, while the deployment serves.",
    "role": "Turn an engine into one of another role.",
    "down": "Drain and stop a deployment.",
    "plan": "Show what `up` would start, and change nothing.",
    "hosts": "Prepare the hosts of a topology for pdctl's own engine.",
    "doctor": "Look at every host for what would keep a topology from running.",
    "nics": "Show the RDMA NICs of a host and those nearest to each GPU.",
    "bench": "Measure a running deployment under load.",
    "init": "Write a topology file that fits this machine.",
    "profiles": "Show the engines and routers that can be started.",
    "schema": "Print the JSON Schema of the topology file.",
}


class Commands(TyperGroup):
    """Loads a command when it is called, and turns what it raises into one line and an exit code."""

    def __init__(self, **settings: Private) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}

    def resolve_command(self, ctx: Private, args: list[str]) -> tuple[str | None, Private, list[str]]:
        """Find the command, or fail with the nearest one."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and load_command(str(name)), rest

    def invoke(self, ctx: Private) -> Private:
        """Run the command under the error policy of docs/cli.md."""
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                show_traceback(error)
            raise typer.Exit(report(error)) from None


def load_command(name: str) -> Private:
    """Import a command's file and make the command of its function, or of its commands if it has several."""
    found = getattr(import_module(f"pdctl.cli.{name}"), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(found)
    return typer.main.get_command(single)


def report(error: BaseException) -> ExitCode:
    """Show an error as one line on stderr, its detail below; return the exit code."""
    from pdctl.cli.terminal import Terminal

    terminal = Terminal()
    if isinstance(error, PdctlError):
        terminal.error(str(error), error.detail)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        terminal.error("interrupted")
        return ExitCode.INTERRUPTED
    message = " ".join(str(error).split()) or "no message"
    terminal.error(f"internal error: {type(error).__name__}: {message} (run `pdctl --debug ...` for the traceback)")
    return ExitCode.FAILURE


def show_traceback(error: BaseException) -> None:
    """Show where an error comes from, on stderr."""
    import sys
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def show_version(asked: bool) -> None:
    """Print the version and exit, if asked to."""
    if asked:
        from pdctl.cli.terminal import Terminal

        Terminal().print(f"pdctl {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich help would take longer to import than the rest together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version."),
) -> None:
    """Start and run prefill/decode disaggregated LLM serving from one topology file."""


def main() -> None:
    """Entry point of the console script."""
    app()
