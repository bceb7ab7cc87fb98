import asyncio

import pytest

from pdctl.dashboard import operations as operations_module
from pdctl.dashboard.notes import Notes
from pdctl.dashboard.operations import Operations
from pdctl.dashboard.view_state import Request
from pdctl.errors import StateError
from tests.dashboard.deployment_samples import FakeSource


class Bench:
    """Operations on a source whose answer the test gives."""

    def __init__(self):
        self.source, self.notes, self.changes = FakeSource(), Notes(), 0
        self.source.answer = asyncio.get_running_loop().create_future()
        self.operations = Operations(self.source, self.notes, self.changed)

    def changed(self):
        self.changes += 1

    async def begin(self, operation, process="decode-0"):
        self.operations.begin(Request(operation, process))
        await settled()

    @property
    def lines(self):
        return [(note.kind, note.text) for note in self.notes.shown]


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.operations.close()


@pytest.mark.parametrize(
    ("operation", "doing", "done"),
    [
        ("restart", "restarting decode-0", "decode-0 was restarted"),
        ("drain", "draining decode-0", "decode-0 is drained: no request is in flight there"),
        ("undrain", "undraining decode-0", "decode-0 gets requests again"),
    ],
)
async def test_what_is_done_is_pinned_and_so_is_its_outcome(bench, operation, doing, done):
    await bench.begin(operation)
    assert bench.lines == [("work", doing)]
    assert bench.source.asked_for == [f"{operation} decode-0"]
    bench.source.answer.set_result(None)
    await settled()
    assert bench.lines == [("success", done)]
    assert bench.changes == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StateError("another pdctl\nis at it"), "restart decode-0: another pdctl is at it"),
        (ValueError("x"), "restart decode-0: internal error: ValueError: x"),
    ],
)
async def test_what_fails_is_one_line_and_ends_nothing(bench, error, text):
    await bench.begin("restart")
    bench.source.answer.set_exception(error)
    await settled()
    assert bench.lines == [("error", text)]


async def test_what_takes_too_long_is_given_up(bench, monkeypatch):
    monkeypatch.setitem(operations_module.LIMITS_S, "drain", 0.01)
    await bench.begin("drain")
    async with asyncio.timeout(10):
        while bench.lines[0][0] != "error":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert bench.lines == [("error", "drain decode-0: it has not ended within 0.01 s, and may go on")]


async def test_one_at_a_time_for_each_process(bench):
    await bench.begin("restart")
    await bench.begin("drain")
    await bench.begin("drain", "decode-1")
    assert bench.source.asked_for == ["restart decode-0", "drain decode-1"]
    assert ("error", "drain decode-0: something is being done with it already") in bench.lines
    bench.source.answer.set_result(None)
    await settled()
    await bench.begin("drain")
    assert bench.source.asked_for[-1] == "drain decode-0"


async def test_leaving_waits_for_nothing(bench):
    await bench.begin("restart")
    await bench.operations.close()
    assert bench.source.answer.cancelled()
