"""scale, role, restart --rolling, and `up` with a changed file, from the outside."""

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.models import DeploymentStatus
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode
from tests.cli.deployment_cli import PDCTL, Cli, read_until
from tests.deployment.conftest import runtime  # noqa: F401
from tests.deployment.deployment_harness import living

pytestmark = pytest.mark.chaos

HANGS = {"args": {"never-ready": True}}


@pytest.fixture
def cli(runtime: Path, tmp_path: Path) -> Iterator[Cli]:  # noqa: F811
    """At the end of the test, nothing that was started may live (see `runtime`)."""
    return Cli(tmp_path)


@pytest.fixture
def serving(cli: Cli) -> Iterator[Cli]:
    """One prefill and one decode engine, detached."""
    up(cli)
    yield cli
    assert cli("down").returncode == 0


def up(cli: Cli, **changes: object) -> "subprocess.CompletedProcess[str]":
    done = cli("up", "-d", cli.topology("--beats", **changes))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def status_of(name: str = "d") -> DeploymentStatus:
    async def look() -> DeploymentStatus:
        deployment = Deployment.attach(Store().folder(name))
        try:
            return await deployment.status()
        finally:
            await deployment.close()

    return asyncio.run(look())


def names() -> list[str]:
    status = status_of()
    assert status.state == "ready", status
    return [process.name for process in status.processes]


def changes_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line[:2] in ("+ ", "- ", "~ ")]


def test_scaling_goes_on_from_what_is_deployed(serving: Cli) -> None:
    """And a file, given again, says what is to be."""
    done = serving("scale", "prefill=2")
    assert (done.returncode, changes_of(done.stdout)) == (0, ["+ prefill-1 on here"]), done.stderr
    done = serving("scale", "decode=2", "prefill=1")
    assert changes_of(done.stdout) == ["+ decode-1 on here", "- prefill-1 on here"]
    assert names() == ["router", "prefill-0", "decode-0", "decode-1"]
    done = serving("up", serving.topology("--beats"))
    assert done.stdout.splitlines()[0] == "- decode-1 on here"
    assert names() == ["router", "prefill-0", "decode-0"]


def test_an_engine_takes_another_role(serving: Cli) -> None:
    up(serving, prefill=3)
    done = serving("role", "prefill-1", "decode")
    assert changes_of(done.stdout) == ["+ decode-1 on here", "- prefill-1 on here"]
    assert names() == ["router", "prefill-0", "prefill-2", "decode-0", "decode-1"]
    wrong = serving("role", "prefill-1", "decode").stderr
    assert "deployment 'd' has no engine 'prefill-1', only prefill-0, prefill-2, decode-0, decode-1" in wrong


def test_what_a_killed_one_has_begun_is_finished_by_the_next(serving: Cli) -> None:
    with serving.spawn("up", serving.topology("--beats", prefill=[{}, HANGS])) as changing:
        read_until(changing, "prefill-1: loading weights")
        changing.kill()
        changing.communicate(timeout=30)
    assert status_of().state == "degraded"
    done = up(serving, prefill=2)
    assert "stopping prefill-1, left by a change that was interrupted" in done.stdout
    assert names() == ["router", "prefill-0", "prefill-1", "decode-0"]


def test_down_while_it_is_changed(cli: Cli, runtime: Path) -> None:  # noqa: F811
    up(cli)
    with cli.spawn("up", cli.topology("--beats", prefill=[{}, HANGS])) as changing:
        read_until(changing, "prefill-1: loading weights")
        down = cli("down")
        _, err = changing.communicate(timeout=30)
    assert (down.returncode, changing.returncode) == (0, ExitCode.INTERRUPTED), down.stderr
    assert "is changing it: telling it to stop" in down.stdout
    assert err.startswith("error: interrupted")
    assert living(runtime) == []


def test_a_deployment_in_the_foreground_is_changed_and_left(cli: Cli, runtime: Path) -> None:  # noqa: F811
    """Left while another change is under way."""
    with cli.spawn("up", cli.topology("--beats")) as foreground:
        read_until(foreground, "d is ready at")
        assert cli("scale", "decode=2").returncode == 0
        assert cli("restart", "--rolling", "decode-0").returncode == 0
        assert foreground.poll() is None
        with cli.spawn("up", cli.topology("--beats", prefill=[{}, HANGS], decode=2)) as changing:
            read_until(changing, "prefill-1: loading weights")
            foreground.send_signal(signal.SIGINT)
            _, err = foreground.communicate(timeout=30)
            changing.communicate(timeout=30)
    assert (foreground.returncode, err) == (0, "")
    assert changing.returncode == ExitCode.INTERRUPTED
    assert living(runtime) == []


def test_on_a_terminal_the_user_is_asked(serving: Cli) -> None:
    for answer, expected in (("n", ["decode-0"]), ("y", ["decode-0", "decode-1"])):
        controller, terminal = pty.openpty()
        file = serving.topology("--beats", decode=2)
        asking = subprocess.Popen([PDCTL, "up", file], stdin=terminal, stdout=subprocess.PIPE, text=True)
        os.close(terminal)
        os.write(controller, f"{answer}\n".encode())
        out, _ = asking.communicate(timeout=60)
        os.close(controller)
        assert asking.returncode == 0
        assert out.startswith("+ decode-1 on here\nMake this change? [y/N] ")
        assert names()[2:] == expected


def test_a_port_that_another_process_has_taken_meanwhile(cli: Cli) -> None:
    done = cli("up", "-d", cli.topology("--beats", "--taken", "20000", ports="chosen"))
    assert done.returncode == 0, done.stderr
    assert "prefill-0 exited with code 1: planning again with other ports" in done.stdout
    assert 20000 not in [process.port for process in status_of().processes]
    assert cli("down").returncode == 0


def test_two_deployments_at_once_have_ports_of_their_own(cli: Cli) -> None:
    ups = [cli.spawn("up", "-d", cli.topology("--beats", name=name, ports="chosen")) for name in ("one", "two")]
    assert [(one.communicate(timeout=60), one.returncode)[1] for one in ups] == [0, 0]
    ports = [process.port for name in ("one", "two") for process in status_of(name).processes]
    assert len(set(ports)) == len(ports) == 6
    for name in ("one", "two"):
        assert cli("down", "--name", name).returncode == 0


def test_before_anything_runs(cli: Cli) -> None:
    done = cli("up", "--dry-run", cli.topology())
    assert done.stdout.splitlines() == ["+ router on here", "+ prefill-0 on here", "+ decode-0 on here"]
    assert "there is no deployment" in cli("scale", "prefill=2").stderr
    wrong = cli("scale", "prefil=2")
    assert wrong.returncode == ExitCode.USAGE
    assert "expected prefill|decode|mixed=NUMBER" in wrong.stderr
