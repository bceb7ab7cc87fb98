"""What is printed where, and how."""

import io
import json
import sys
from collections.abc import Callable

import pytest
from rich.table import Table

from pdctl.cli.terminal import Terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """Put a screen in the place of stdout; the tests call it, as pytest sets stdout anew after the fixtures."""

    def put(**env: str) -> Screen:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm-256color", "COLUMNS": "40"} | env).items():
            monkeypatch.setenv(name, value)
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        return screen

    return put


def test_results_on_stdout_complaints_on_stderr(capsys: pytest.CaptureFixture[str]):
    terminal = Terminal()
    terminal.info("a")
    terminal.success("b")
    terminal.print("c")
    terminal.warning("d")
    terminal.error("e", "f\ng")
    assert capsys.readouterr() == ("a\nb\nc\n", "warning: d\nerror: e\n  f\n  g\n")


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]):
    line = "[bold]prefill[0].gpus[/bold] :smile: " + "x" * 300
    Terminal().error(line)
    Terminal().print(line)
    assert capsys.readouterr() == (f"{line}\n", f"error: {line}\n")


def test_tables_have_room_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    table = Table("a", "b")
    table.add_row("x" * 80, "y" * 80)
    Terminal().print(table)
    assert "x" * 80 in capsys.readouterr().out


def test_json_can_be_read_back(show: Callable[..., Screen]):
    screen = show()
    value = {"text": "[red]x[/red] " * 50, "number": 1}
    Terminal().print_json(value)
    assert json.loads(screen.getvalue()) == value


def test_colour_on_a_terminal(show: Callable[..., Screen]):
    screen = show()
    Terminal().success("done")
    assert screen.getvalue() == "\x1b[32mdone\x1b[0m\n"


def test_no_colour_where_it_is_not_wanted(show: Callable[..., Screen]):
    screen = show(NO_COLOR="1")
    Terminal().success("done")
    assert screen.getvalue() == "done\n"


@pytest.mark.parametrize(("term", "interactive"), [("xterm", True), ("dumb", False), ("", False)])
def test_is_interactive(show: Callable[..., Screen], term: str, interactive: bool):
    show(TERM=term)
    assert Terminal().is_interactive is interactive


def test_a_pipe_is_not_interactive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert Terminal().is_interactive is False
