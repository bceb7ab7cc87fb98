"""The two processes of `pdctl bench transfer`: what is passed on, and what is said when one does not do its part."""

import sys
from pathlib import Path

import pytest

from pdctl.bench.transfer import run
from pdctl.bench.transfer.messages import Cell, Event, Link, Links
from pdctl.bench.transfer.run import run_sweep
from pdctl.bench.transfer.sweep import Sweep
from pdctl.errors import ProcessDiedError, StepTimeoutError

SWEEP = Sweep(("ipc",), (1024,), (8,), 0.5)
CELL = Cell("ipc", 1024, 8, 10**9, 0.5)


@pytest.fixture(autouse=True)
def measuring_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MEASURE", (sys.executable, str(Path(__file__).with_name("measuring_child.py"))))


async def measure(behaviour: str) -> list[Event]:
    found: list[Event] = []
    await run_sweep(SWEEP, {"MEASURING_CHILD": behaviour}, found.append)
    return found


async def test_what_the_source_says_is_passed_on():
    links = Links({"ipc": Link("memcpy", 8.0), "tcp": Link("loopback")})
    assert await measure("both do their part") == [links, CELL]
    assert CELL.gigabytes_s == 2


@pytest.mark.parametrize(
    ("behaviour", "said", "log"),
    [
        ("target fails", "the target ended with status 3", ["target: no torch here"]),
        (
            "source is killed",
            "the source was killed by SIGKILL",
            ["target: listens on 127.0.0.1", "source: connects to 4711 with a2V5"],
        ),
        (  # though it is the source that says so
            "target is killed",
            "the target was killed by SIGKILL",
            [
                "target: listens on 127.0.0.1",
                "source: connects to 4711 with a2V5",
                "source: the target has gone",
            ],
        ),
    ],
)
async def test_a_process_that_dies_is_named_and_its_log_shown(behaviour: str, said: str, log: list[str]):
    with pytest.raises(ProcessDiedError) as failed:
        await measure(behaviour)
    assert str(failed.value) == f"bench transfer: {said}"
    assert failed.value.detail.splitlines() == log


@pytest.mark.parametrize(
    ("behaviour", "limit", "awaited"),
    [
        ("target is silent", "START_S", "the target to listen"),
        ("source is silent", "STEP_S", "what the source measures after ipc, 8 x 1 KiB"),
        ("source closes its output", "END_S", "the source to end"),
    ],
)
async def test_a_wait_that_takes_too_long_says_for_what(
    monkeypatch: pytest.MonkeyPatch, behaviour: str, limit: str, awaited: str
):
    monkeypatch.setattr(run, limit, 1.0)
    with pytest.raises(StepTimeoutError) as failed:
        await measure(behaviour)
    seconds = 1.5 if limit == "STEP_S" else 1
    assert str(failed.value) == f"bench transfer: waited {seconds:g} s for {awaited}"
    if limit != "START_S":
        assert failed.value.detail.startswith("target: listens on 127.0.0.1")
