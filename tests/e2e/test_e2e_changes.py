"""Changes of a running deployment under a steady load: no request fails, and every answer is what it always was."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pdctl.errors import ExitCode
from tests.e2e.chaos_load import Known, Load, learn, mixed_requests, steady_load
from tests.e2e.e2e_harness import Cli, Serving, serve

pytestmark = pytest.mark.chaos

CLIENTS = 2
STANDINS = Path(__file__).parents[1] / "standins"
ARGS = {"dtype": "float32", "max-model-len": 1024}


@pytest.fixture(scope="module")
def topology(tiny_model: Path) -> dict[str, object]:
    return {"name": "changes", "model": str(tiny_model), "prefill": {"args": ARGS}, "decode": {"args": ARGS}}


@pytest.fixture(scope="module")
def serving(module_cli: Cli, topology: dict[str, object]) -> Iterator[Serving]:
    with serve(module_cli, topology) as serving:
        yield serving


@pytest.fixture(scope="module")
def known(serving: Serving) -> list[Known]:
    return learn(serving.url, mixed_requests())


@pytest.fixture
def at(serving: Serving, topology: dict[str, object]) -> Serving:
    """The deployment as its file says, whatever a test before has left."""
    run(serving.cli, "up", "-d", serving.cli.write(topology))
    assert [name.split("-")[0] for name in names(serving)] == ["router", "prefill", "decode"]
    return serving


def run(cli: Cli, *arguments: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = cli(*arguments, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def names(at: Serving) -> list[str]:
    status = at.cli.status()
    assert status["state"] == "ready", status
    return [process["name"] for process in status["processes"]]


def pids(at: Serving) -> dict[str, int]:
    return pids_of(at.cli.status())


def pids_of(status: dict[str, Any]) -> dict[str, int]:
    return {process["name"]: process["pid"] for process in status["processes"]}


@contextmanager
def undisturbed(at: Serving, known: list[Known]) -> Iterator[Load]:
    """Have clients ask one thing after the other; none may notice what happens meanwhile."""
    with steady_load(at.url, known, CLIENTS) as load:
        load.turn_over()
        yield load
        load.turn_over()


def test_more_engines_other_roles_and_fewer(at: Serving, known: list[Known]) -> None:
    before = pids(at)
    with undisturbed(at, known) as load:
        run(at.cli, "scale", "prefill=2")
        assert names(at) == ["router", "prefill-0", "prefill-1", "decode-0"]
        load.turn_over()
        said = run(at.cli, "role", "prefill-0", "decode")
        assert said.stdout.splitlines()[:2] == ["+ decode-1 on here", "- prefill-0 on here"]
        assert names(at) == ["router", "prefill-1", "decode-0", "decode-1"]
        load.turn_over()
        run(at.cli, "scale", "decode=1")
    after = pids(at)
    assert list(after) == ["router", "prefill-1", "decode-0"]
    assert (after["router"], after["decode-0"]) == (before["router"], before["decode-0"])
    assert not any(psutil.pid_exists(pid) for name, pid in before.items() if name not in after)


def test_a_rolling_restart_of_all_engines(at: Serving, known: list[Known]) -> None:
    """Each has no other beside it of its role: a spare one serves meanwhile."""
    before = pids(at)
    with undisturbed(at, known):
        said = run(at.cli, "restart", "--rolling")
    assert said.stdout.count("serves while") == 2
    after = pids(at)
    assert list(after) == list(before)
    assert {name for name in after if after[name] == before[name]} == {"router"}


def test_a_changed_file_and_one_that_fails(at: Serving, known: list[Known], topology: dict[str, object]) -> None:
    before = pids(at)
    _, prefill, decode = before
    other = topology | {"decode": {"args": ARGS | {"max-num-seqs": 7}}}
    with undisturbed(at, known):
        file = at.cli.write(other)
        shown = run(at.cli, "plan", "--diff", file)
        assert shown.stdout == f"~ {decode}: --max-num-seqs (none) -> 7\nnothing was changed\n"
        assert pids(at) == before
        run(at.cli, "up", "-d", file)
        changed = pids(at)
        assert {name for name in changed if changed[name] == before[name]} == {"router", prefill}
        wrong = at.cli.write(other | {"prefill": {"args": ARGS | {"max-num-seqs": "many"}}})
        failed = run(at.cli, "up", "-d", wrong, code=ExitCode.PROCESS_DIED)
    assert "exited with code 2 (nothing has changed: what ran before serves)" in failed.stderr
    assert pids(at) == changed
    assert (
        run(at.cli, "up", "-d", at.cli.write(other)).stdout
        == f"changes runs already, at {at.url}: nothing was changed\n"
    )


def test_a_router_that_is_told_of_the_engines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again, at its port; an engine that is the only one of its role cannot have a spare one."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    monkeypatch.setenv("PATH", f"{STANDINS / 'bin'}:{os.environ['PATH']}")
    file = cli.write({"name": "told", "engine": "sglang", "model": "M", "prefill": 1, "decode": 1})
    run(cli, "up", "-d", file)
    try:
        before = cli.status()
        said = run(cli, "scale", "prefill=2").stdout.splitlines()
        assert said[0] == "+ prefill-1 on here, GPU 2"
        assert said[1].startswith("~ router: --prefill ")
        assert said[2].endswith("it has to be, as it is told at its start which engines there are")
        after = cli.status()
        assert (after["state"], after["endpoint"]) == ("ready", before["endpoint"])
        assert {name for name, pid in pids_of(after).items() if pids_of(before).get(name) != pid} == {
            *("router", "prefill-1")
        }
        said = run(cli, "restart", "--rolling", "decode-0").stdout
        assert said.startswith("no other engine can serve meanwhile: requests for decode-0 are refused")
    finally:
        run(cli, "down")
