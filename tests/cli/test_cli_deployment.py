"""up, status, logs and down, from the outside."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from pdctl.errors import ExitCode
from tests.agent.agent_harness import eventually
from tests.cli.deployment_cli import PDCTL, Cli, read_until
from tests.deployment.conftest import runtime  # noqa: F401
from tests.deployment.deployment_harness import is_alive, living

BODY = {"prompt": "a", "max_tokens": 2}


@pytest.fixture
def cli(runtime: Path, tmp_path: Path) -> Iterator[Cli]:  # noqa: F811
    """At the end of the test, nothing that was started may live (see `runtime`)."""
    return Cli(tmp_path)


def test_a_life(cli: Cli, runtime: Path) -> None:  # noqa: F811
    up = cli("up", "-d", cli.topology())
    assert up.returncode == 0, up.stdout + up.stderr
    status = cli.status()
    endpoint = status["endpoint"]
    assert f"d is ready at {endpoint}\ncurl {endpoint}/v1/chat/completions" in up.stdout
    assert (status["name"], status["state"]) == ("d", "ready")
    for process in status["processes"]:
        assert set(process) >= {"name", "role", "host", "pid", "port", "state", "restarts", "uptime_s", "load"}
        assert process["state"] == "ready"
    assert httpx.post(f"{endpoint}/v1/completions", json=BODY, timeout=10).status_code == 200

    again = cli("up", cli.topology())
    assert again.returncode == 0
    assert f"d runs already, at {endpoint}: nothing was changed" in again.stdout
    assert cli.status()["processes"][0]["pid"] == status["processes"][0]["pid"]

    assert "prefill-0" in cli("status").stdout
    assert cli("logs", "decode-0").stdout == "decode-0  | decode begins\n"

    down = cli("down")
    assert down.returncode == 0
    assert down.stdout.splitlines() == [
        "stopping router",
        "stopping decode-0",
        "stopping prefill-0",
        "d is down: nothing of it runs",
    ]
    assert living(runtime) == []
    assert cli("down").stdout == "d was down already: nothing of it runs\n"
    assert cli.status()["state"] == "down"
    assert "told to stop" in cli("logs").stdout


def test_without_any_deployment(cli: Cli) -> None:
    down, status = cli("down"), cli("status")
    assert (down.returncode, down.stdout) == (0, "there is no deployment here\n")
    assert status.returncode == ExitCode.NOT_FOUND
    assert status.stderr == "error: there is no deployment here: start one with `pdctl up`\n"
    assert cli("down", "--name", "x").returncode == ExitCode.NOT_FOUND


def test_interrupt_in_the_foreground_stops_everything(cli: Cli, runtime: Path) -> None:  # noqa: F811
    with cli.spawn("up", cli.topology()) as up:
        read_until(up, "d is ready at")
        assert len(living(runtime)) >= 5  # the launcher, guardian, agent, router, engines
        up.send_signal(signal.SIGINT)
        out, err = up.communicate(timeout=30)
    assert (up.returncode, err) == (0, "")
    assert "d is down: nothing of it runs" in out
    assert living(runtime) == []


def test_interrupt_while_starting(cli: Cli, runtime: Path) -> None:  # noqa: F811
    with cli.spawn("up", "-d", cli.topology("--never-ready")) as up:
        read_until(up, "loading weights")
        up.send_signal(signal.SIGTERM)
        _, err = up.communicate(timeout=30)
    assert up.returncode == ExitCode.INTERRUPTED
    assert "interrupted before the deployment was ready: nothing of it runs" in err
    assert living(runtime) == []


def test_interrupt_of_a_start_that_changes_nothing(cli: Cli) -> None:
    """It finds a deployment that runs, whose agent takes its time."""
    path = cli.topology()
    assert cli("up", "-d", path).returncode == 0
    state = cli.folder / "state" / "d"
    agent = json.loads((state / "hosts" / "here" / "agent.json").read_text())["pid"]
    os.kill(agent, signal.SIGSTOP)
    with cli.spawn("up", path) as up:
        eventually(lambda: is_locked(state / "lock"), "the lock")
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=30)
    os.kill(agent, signal.SIGCONT)
    assert up.returncode == ExitCode.INTERRUPTED
    assert err.startswith("error: interrupted: d may still run: see `pdctl status --name d`, end it with `pdctl down")
    assert cli.status()["state"] == "ready"
    assert cli("down").returncode == 0


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_interrupt_of_a_look_that_would_end_by_itself(cli: Cli) -> None:
    assert cli("up", "-d", cli.topology()).returncode == 0
    agent = json.loads((cli.folder / "state" / "d" / "hosts" / "here" / "agent.json").read_text())["pid"]
    os.kill(agent, signal.SIGSTOP)
    with cli.spawn("status") as status:
        eventually(lambda: handles_sigint(status.pid), "its handler")
        status.send_signal(signal.SIGINT)
        status.communicate(timeout=30)
    os.kill(agent, signal.SIGCONT)
    assert status.returncode == ExitCode.INTERRUPTED
    assert cli("down").returncode == 0


def handles_sigint(pid: int) -> bool:
    """Whether the event loop's handlers are set: those for SIGTERM too, which Python does not handle by itself."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught & 1 << signal.SIGTERM - 1)


def test_a_second_interrupt_kills(cli: Cli, runtime: Path) -> None:  # noqa: F811
    with cli.spawn("up", cli.topology("--ignore-term")) as up:
        read_until(up, "d is ready at")
        up.send_signal(signal.SIGINT)
        read_until(up, "decode-0: stopping")
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=9)  # less than the grace
    assert up.returncode == 0
    assert living(runtime) == []


def test_the_end_of_a_roles_last_engine_in_the_foreground(cli: Cli, runtime: Path) -> None:  # noqa: F811
    with cli.spawn("up", cli.topology(prefill={"restart": "never"})) as up:
        read_until(up, "d is ready at")
        os.kill(cli.pid("prefill-0"), signal.SIGKILL)
        _, err = up.communicate(timeout=30)
    assert up.returncode == ExitCode.PROCESS_DIED
    assert err == "error: prefill-0 was killed by SIGKILL\n  prefill begins\n"
    assert living(runtime) == []
    assert cli.status()["reason"] == "prefill-0 was killed by SIGKILL"


def test_a_death_in_the_foreground(cli: Cli, runtime: Path) -> None:  # noqa: F811
    """It is shown, and the process comes back. The engines here register once: of the router they hear no more."""
    restart = {"backoff_s": 0.1}
    with cli.spawn("up", cli.topology(prefill={"restart": restart}, router={"port": 0, "restart": restart})) as up:
        read_until(up, "d is ready at")
        endpoint = cli.status()["endpoint"]
        for name in ("prefill-0", "router"):
            os.kill(cli.pid(name), signal.SIGKILL)
            read_until(up, f"pdctl: {name} was started again (1): it was killed by SIGKILL")
            eventually(lambda name=name: state_of(cli, name) == ("ready", 1), f"{name} to be ready again")
        assert httpx.get(f"{endpoint}/health/live", timeout=10).status_code == 200
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=30)
    assert (up.returncode, err) == (0, "")
    assert living(runtime) == []


def state_of(cli: Cli, name: str) -> tuple[str, int]:
    return next((p["state"], p["restarts"]) for p in cli.status()["processes"] if p["name"] == name)


def test_an_engine_that_crashes_at_start(cli: Cli, runtime: Path) -> None:  # noqa: F811
    up = cli("up", "-d", cli.topology("--exit", "4"))
    assert up.returncode == ExitCode.PROCESS_DIED
    assert "exited with code 4\n" in up.stderr
    assert "something went wrong" in up.stderr
    assert living(runtime) == []


def test_closing_the_terminal_leaves_the_service_running(cli: Cli) -> None:
    with cli.spawn("up", cli.topology()) as up:
        read_until(up, "d is ready at")
        up.send_signal(signal.SIGHUP)
        up.communicate(timeout=30)
    status = cli.status()
    assert status["state"] == "ready"
    assert httpx.post(f"{status['endpoint']}/v1/completions", json=BODY, timeout=10).status_code == 200
    assert cli("down").returncode == 0


def test_down_ends_the_foreground_too(cli: Cli) -> None:
    with cli.spawn("up", cli.topology()) as up:
        read_until(up, "d is ready at")
        assert cli("down").returncode == 0
        out, _ = up.communicate(timeout=30)
    assert up.returncode == 0
    assert "d was stopped by another pdctl" in out


def test_up_of_a_degraded_deployment(cli: Cli) -> None:
    path = cli.topology(decode={"restart": "never"})
    assert cli("up", "-d", path).returncode == 0
    decode = cli.pid("decode-0")
    os.kill(decode, signal.SIGKILL)
    eventually(lambda: not is_alive(decode), "the engine's end")
    assert cli.status()["state"] == "degraded"
    again = cli("up", "-d", path)
    assert again.returncode == ExitCode.DEGRADED
    assert "d' runs, but is degraded: decode-0 was killed by SIGKILL: see `pdctl logs decode-0`; stop" in again.stderr
    assert cli("down").returncode == 0


def test_two_ups_of_one_name_at_once(cli: Cli) -> None:
    path = cli.topology()
    ups = [cli.spawn("up", "-d", path) for _ in range(2)]
    results = [(up.communicate(timeout=60), up.returncode) for up in ups]
    codes = sorted(code for _, code in results)
    assert codes in ([0, 0], [0, ExitCode.STATE])
    said = "".join(out + err for (out, err), _ in results)
    assert "d runs already" in said or "is being started" in said
    assert sum("d is ready at" in out for (out, _), _ in results) == 1
    assert cli("down").returncode == 0


def test_two_names_side_by_side(cli: Cli) -> None:
    ups = [cli.spawn("up", "-d", cli.topology(name=name)) for name in ("default", "two")]
    assert [(up.communicate(timeout=60), up.returncode)[1] for up in ups] == [0, 0]
    for command in ("status", "down"):
        ambiguous = cli(command)
        assert ambiguous.returncode == ExitCode.NOT_FOUND
        assert ambiguous.stderr == "error: several deployments run: choose one with --name: default, two\n"
    assert cli("down", "--name", "default").returncode == 0
    assert cli.status()["name"] == "two"  # the only one that runs
    assert cli.status("--name", "two")["state"] == "ready"
    assert cli("down").returncode == 0


def test_a_host_that_cannot_be_reached(cli: Cli) -> None:
    path = cli.topology(hosts={"far": {"ssh": "ops@far"}}, prefill={"host": "far"})
    up = cli("up", "-d", path)
    assert up.returncode == ExitCode.UNREACHABLE
    assert "far" in up.stderr
    assert len(up.stderr.splitlines()) == 1


def test_following_and_watching_end_with_an_interrupt(cli: Cli) -> None:
    assert cli("up", "-d", cli.topology()).returncode == 0
    with cli.spawn("logs", "-f") as logs, cli.spawn("status", "--watch", "--json") as watch:
        read_until(logs, "decode begins")
        read_until(watch, '"state": "ready"')
        read_until(watch, '"name": "d"')  # of the second look
        for process in (logs, watch):
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            assert (process.returncode, err) == (0, "")
    assert cli("down").returncode == 0


def test_a_damaged_state(cli: Cli) -> None:
    folder = cli.folder / "state" / "d"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    for arguments in (("up", "-d", str(cli.topology())), ("status",)):
        done = cli(*arguments)
        assert done.returncode == ExitCode.STATE
        assert "state.json is damaged" in done.stderr


def test_the_dashboard_on_a_terminal(cli: Cli, runtime: Path) -> None:  # noqa: F811
    """Ctrl-C typed there reaches the launcher only: the processes are drained, not interrupted."""
    controller, terminal = pty.openpty()
    path = cli.topology()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    command = ["setsid", "--ctty", PDCTL, "up", path]
    up = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = bytearray()
    reader = threading.Thread(target=read_all, args=(controller, shown))  # who writes to a full terminal waits
    reader.start()
    eventually(lambda: b"ready" in shown and b"decode-0" in shown, "the dashboard")
    eventually(lambda: cli.status()["state"] == "ready", "readiness")
    os.write(controller, b"\x03")
    assert up.wait(30) == 0
    reader.join(30)
    assert b"d is down: nothing of it runs" in shown
    assert living(runtime) == []


def read_all(controller: int, shown: bytearray) -> None:
    with suppress(OSError):  # the last one has closed the terminal
        while data := os.read(controller, 65536):
            shown += data
    os.close(controller)
