"""`pdctl bench transfer`, for real in one test, and with a stand-in for the measuring program in the others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from pdctl.bench.transfer import run
from pdctl.cli.main import app
from pdctl.errors import ExitCode
from tests.processes import Spawned

ROOT = Path(__file__).parents[2]
CHILD = str(ROOT / "tests" / "bench" / "measuring_child.py")


def transfer(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "transfer", *arguments])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MEASURE", (sys.executable, CHILD))


def test_it_measures_and_says_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "none0")
    done = transfer("--block-sizes", "4K,16K", "--in-flight", "1,8", "--seconds", "0.02", "--json")
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert [(cell["transport"], cell["block_bytes"], cell["in_flight"]) for cell in data["cells"]] == [
        (transport, size, count) for transport in ("ipc", "tcp") for size in (4096, 16384) for count in (1, 8)
    ]
    assert all(cell["gigabytes_s"] > 0 for cell in data["cells"])
    assert (list(data["unusable"]), data["failed"]) == (["rdma"], {})
    assert data["links"]["tcp"]["name"] == "loopback"
    assert data["links"]["ipc"]["name"] == "memcpy"


def test_the_table_is_shown(stand_in: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEASURING_CHILD", "both do their part")
    done = transfer("--transports", "ipc", "--block-sizes", "1K", "--in-flight", "8", "--hosts", "local", "local")
    assert (done.exit_code, done.stderr) == (0, "")
    header, row = done.stdout.splitlines()
    assert header.split() == ["transport", "block", "x", "8", "link", "GB/s", "of", "link", "link"]
    assert row.split() == ["ipc", "1", "KiB", "2.00", "8.00", "25%", "memcpy"]


def test_what_was_measured_before_a_failure_is_shown(stand_in: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEASURING_CHILD", "source is killed")
    done = transfer("--transports", "ipc", "--block-sizes", "1K", "--in-flight", "8")
    assert done.exit_code == ExitCode.PROCESS_DIED
    assert done.stdout.splitlines()[1].split() == ["ipc", "1", "KiB", "2.00", "8.00", "25%", "memcpy"]
    assert done.stderr.splitlines() == [
        "error: bench transfer: the source was killed by SIGKILL",
        "  target: listens on 127.0.0.1",
        "  source: connects to 4711 with a2V5",
    ]


@pytest.mark.parametrize(
    ("behaviour", "shown", "said"),
    [
        ("ipc fails", "ipc        failed: wrong bytes", "failed: ipc: wrong bytes"),
        ("nothing is usable", "ipc        not usable: another host", "nothing could be measured: ipc: another host"),
    ],
)
def test_it_fails_where_a_transport_does_or_none_can_be_used(
    stand_in: None, monkeypatch: pytest.MonkeyPatch, behaviour: str, shown: str, said: str
):
    monkeypatch.setenv("MEASURING_CHILD", behaviour)
    done = transfer("--transports", "ipc", "--block-sizes", "1K", "--in-flight", "8")
    assert (done.exit_code, done.stderr) == (ExitCode.BENCH_ERRORS, f"error: {said}\n")
    assert done.stdout.splitlines()[-1] == shown


def test_a_target_that_does_not_start(stand_in: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEASURING_CHILD", "target fails")
    done = transfer("--transports", "ipc")
    assert (done.exit_code, done.stdout) == (ExitCode.PROCESS_DIED, "")
    assert done.stderr == "error: bench transfer: the target ended with status 3\n  target: no torch here\n"


def test_ctrl_c_shows_what_was_measured_and_ends_both(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import sys; from pdctl.bench.transfer import run; from pdctl.cli.main import main; "
        f"run.MEASURE = (sys.executable, {CHILD!r}); main()"
    )
    options = ["--transports", "ipc", "--block-sizes", "1K", "--in-flight", "8"]
    with Spawned(
        [sys.executable, "-c", code, "bench", "transfer", *options],
        env={**os.environ, "MEASURING_CHILD": "both wait", "MEASURING_CHILD_PIPE": str(pipe)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        pipe.read_text()  # the source has said a figure
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (ExitCode.INTERRUPTED, "error: interrupted\n")
    assert shown == "" or "2.00" in shown
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--transports", "ipc,rmda"], "--transports: 'rmda' is none of ipc, rdma, tcp"),
        (["--block-sizes", "1000"], "--block-sizes: '1000' is not a multiple of 1024 bytes"),
        (["--in-flight", "0"], "--in-flight: '0' is not a whole number of at least 1"),
        (["--seconds", "0"], "'--seconds': Input should be greater than or equal to 0.01"),
        (["--hosts", "local", "secnd"], "--hosts: unknown host 'secnd'"),
        (["--hosts", "local"], "'--hosts' requires 2 arguments"),
    ],
)
def test_wrong_options(arguments: list[str], said: str):
    done = transfer(*arguments)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert said in " ".join(done.stderr.split())


def test_a_host_that_ssh_does_not_reach(tmp_path: Path):
    (tmp_path / "t.yaml").write_text("hosts: {far: {ssh: nobody@no-such-host.invalid}}\nmixed: {host: far}\n")
    done = transfer(str(tmp_path / "t.yaml"), "--hosts", "local", "far")
    assert (done.exit_code, done.stdout) == (ExitCode.UNREACHABLE, "")
    assert done.stderr.startswith("error: host far: `ssh nobody@no-such-host.invalid`: ")
