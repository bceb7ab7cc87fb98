"""The command `pdctl`: fast help, usage errors, and one policy for what goes wrong."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pdctl import __version__
from pdctl.cli import main
from pdctl.errors import ExitCode, PdctlError, PlanError

PDCTL = Path(sys.executable).parent / "pdctl"
HEAVY = {"torch", "pydantic", "rich", "uvloop", "yaml", "aiohttp", "httpx", "asyncio", "engine"}


def pdctl(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([PDCTL, *arguments], text=True, timeout=60, check=False, **pipes | settings)


def call(monkeypatch: pytest.MonkeyPatch, command: object, *arguments: str) -> tuple[int, str, str]:
    """Run `pdctl <arguments> plan` with `command` in the place of the real one."""
    single = typer.Typer()
    single.command("plan")(command)
    monkeypatch.setattr(main, "load_command", lambda name: typer.main.get_command(single))
    result = CliRunner().invoke(main.app, [*arguments, "plan"])
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command_and_imports_nothing_heavy():
    code = f"""
import sys
sys.argv = ["pdctl", "--help"]
from pdctl.cli.main import main
try:
    main()
finally:
    print(sorted(name for name in {HEAVY!r} if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *shown, imported = result.stdout.splitlines()
    assert imported == "[]"
    for name, text in main.COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in shown), name


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name: str):
    result = CliRunner().invoke(main.app, [name, "--help"], prog_name="pdctl")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: pdctl {name} ")


def test_version():
    assert pdctl("--version").stdout == f"pdctl {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean 'status', 'restart'?"),
        (["plan", "--jsn"], "No such option: --jsn (Possible options: --json)"),
        (["--debgu"], "No such option: --debgu (Possible options: --debug)"),
        (["plan", "a.yaml", "b.yaml"], "(b.yaml)"),
    ],
)
def test_usage_errors_exit_with_2_and_the_nearest(arguments: list[str], said: str):
    result = pdctl(*arguments)
    assert (result.returncode, result.stdout) == (ExitCode.USAGE, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_command_it_shows_its_help():
    result = pdctl()
    assert result.returncode == ExitCode.USAGE
    assert "Usage: pdctl" in result.stdout + result.stderr


def test_our_errors_are_one_line_with_their_exit_code(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        raise PlanError("port 1 is taken", detail="first\n  second")

    assert call(monkeypatch, command) == (4, "", "error: port 1 is taken\n  first\n    second\n")


def test_each_error_has_its_own_exit_code():
    codes = [error.exit_code for error in PdctlError.__subclasses__() if error.__module__ == "pdctl.errors"]
    assert len(codes) == len(set(codes))
    assert not {ExitCode.OK, ExitCode.FAILURE, ExitCode.USAGE} & set(codes)


def test_a_bug_is_one_line_that_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        raise ValueError("two\nlines")

    code, _, said = call(monkeypatch, command)
    assert (code, said) == (
        *(1, "error: internal error: ValueError: two lines (run `pdctl --debug ...` for the traceback)\n"),
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        raise PlanError("port 1 is taken")

    code, _, said = call(monkeypatch, command, "--debug")
    assert code == 4
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("error: port 1 is taken\n")


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        signal.raise_signal(signal.SIGINT)

    assert call(monkeypatch, command) == (130, "", "error: interrupted\n")


def test_a_command_chooses_its_exit_code(monkeypatch: pytest.MonkeyPatch):
    def command() -> None:
        raise typer.Exit(ExitCode.NOT_FOUND)

    assert call(monkeypatch, command) == (7, "", "")


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.PIPE) as reader:
        reader.wait(timeout=30)
        result = pdctl("schema", stdout=reader.stdin)
    assert result.stderr == ""


def test_the_shell_asks_for_completions():
    script = subprocess.run(
        ["bash", "-c", f"{PDCTL} --show-completion; true"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "_PDCTL_COMPLETE=complete_bash" in script.stdout
    assert completions("pdctl st") == ["status"]
    assert completions("pdctl plan --js") == ["--json"]


def completions(line: str) -> list[str]:
    last = str(len(line.split()) - 1)
    return pdctl(env={"_PDCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": last}).stdout.split()


def test_the_page_names_every_command_and_exit_code():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert re.findall(r"^\| `pdctl (\w+)", page, re.MULTILINE) == list(main.COMMANDS)
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == [str(code.value) for code in ExitCode]
