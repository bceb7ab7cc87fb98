"""`pdctl attach` and `pdctl status --watch` on a terminal, with the real router and engines that compute nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.errors import ExitCode
from tests.cli.deployment_cli import PDCTL, Cli, read_until
from tests.dashboard.pty_child import PtyChild
from tests.deployment.conftest import runtime  # noqa: F401


@pytest.fixture
def cli(runtime: Path, tmp_path: Path) -> Iterator[Cli]:  # noqa: F811
    """At the end of the test, nothing that was started may live (see `runtime`)."""
    return Cli(tmp_path)


@pytest.fixture
def topology(cli: Cli) -> Iterator[Path]:
    """That of a deployment that runs."""
    path = cli.topology(decode=2)
    up = cli("up", "-d", path)
    assert up.returncode == 0, up.stdout + up.stderr
    yield path
    assert cli("down").returncode == 0


def row(child: PtyChild, name: str) -> str:
    return next((row for row in child.frame() if row[2:].startswith(f"{name} ")), "")


def noted(child: PtyChild, text: str) -> bool:
    return any(text in row for row in child.frame()[1:5])


def test_the_dashboard_of_a_deployment_that_runs(cli: Cli, topology: Path) -> None:
    pid = cli.pid("decode-0")
    child = PtyChild([str(PDCTL), "attach", str(topology)], rows=36, columns=120)
    try:
        child.until(lambda: "ready" in row(child, "decode-1"))
        child.until(lambda: any(row.startswith("decode-0  │ decode begins") for row in child.frame()))
        child.press("3dy")
        child.until(lambda: "ready, draining" in row(child, "decode-0") and noted(child, "decode-0 is drained"))
        child.press("dy")
        child.until(lambda: "draining" not in row(child, "decode-0"))
        child.press("ry")
        child.until(lambda: noted(child, "decode-0 was restarted"))
        child.press("q")
        assert child.to_end()
    finally:
        child.close()
    assert "d was left as it is: see `pdctl status --name d`" in child.output
    status = cli.status()
    assert status["state"] == "ready"
    assert cli.pid("decode-0") != pid


def test_watching_on_a_terminal_shows_graphs_too(cli: Cli, topology: Path) -> None:
    child = PtyChild([str(PDCTL), "status", "--watch"])
    try:
        child.until(lambda: "waiting" in child.output and "decode-1" in child.output)
        child.press("\x03")
        assert child.to_end()
    finally:
        child.close()


def test_without_a_terminal_lines_are_written_until_an_interrupt(cli: Cli, topology: Path) -> None:
    with cli.spawn("attach") as attach:
        read_until(attach, "decode-0  | decode begins")
        attach.send_signal(signal.SIGINT)
        out, err = attach.communicate(timeout=30)
    assert (attach.returncode, err) == (0, "")
    assert "d was left as it is" in out


def test_only_what_runs_can_be_attached_to(cli: Cli) -> None:
    nothing = cli("attach")
    assert (nothing.returncode, nothing.stdout) == (ExitCode.NOT_FOUND, "")
    assert nothing.stderr == "error: there is no deployment here: start one with `pdctl up`\n"
    unknown = cli("attach", cli.topology())
    assert unknown.stderr == "error: there is no deployment 'd' here, only: none\n"
    cli("up", "-d", cli.topology())
    cli("down")
    down = cli("attach")
    assert down.returncode == ExitCode.NOT_FOUND
    assert down.stderr == "error: deployment 'd' is down: start it with `pdctl up`, or see `pdctl logs`\n"
