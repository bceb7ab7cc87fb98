import asyncio
import io

import pytest
from rich.console import Console

from pdctl.dashboard import source as source_module
from pdctl.dashboard.plain import changes
from pdctl.dashboard.run import run_dashboard
from pdctl.errors import StateError
from pdctl.hosts.host import HostError
from tests.dashboard.deployment_samples import FakeSource, deployment, line, process, starting


class Lines(io.StringIO):
    """Console output that can be waited for, line by line."""

    async def has(self, wanted):
        async with asyncio.timeout(10):
            while wanted not in self.getvalue().splitlines():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(source_module, "POLL_INTERVAL_S", 0.01)


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_lines_are_prefixed_and_states_told(fast):
    source, out = FakeSource(deployment(process("router", pid=7), starting(0), state="starting")), Lines()
    task = asyncio.create_task(run_dashboard(source, Console(file=out, width=20)))
    await out.has("pdctl     | prefill-0: loading weights 0%")
    assert out.getvalue().splitlines()[0] == "pdctl     | router: ready (pid 7)"
    source.lines.put_nowait(line("a line that is [longer] than the \x1b[1mconsole is wide", "prefill-0"))
    await out.has("prefill-0 | a line that is [longer] than the console is wide")
    source.now = deployment(process("router", pid=7), process("prefill-0", pid=8))
    await out.has("pdctl     | prefill-0: ready (pid 8)")
    await out.has("pdctl     | chat is ready: http://127.0.0.1:8000")
    await cancelled(task)
    assert "\x1b" not in out.getvalue()
    assert source.reading == 0


async def test_it_goes_on_when_the_logs_end(fast):
    source, out = FakeSource(), Lines()
    task = asyncio.create_task(run_dashboard(source, Console(file=out, width=80)))
    source.lines.put_nowait(None)
    await out.has("pdctl     | chat is ready: http://127.0.0.1:8000")
    source.now = deployment(state="down", reason="decode-0 exited (code 1)")
    await out.has("pdctl     | chat is down: decode-0 exited (code 1)")
    await cancelled(task)


async def test_what_the_source_raises_is_raised(fast):
    source = FakeSource()
    task = asyncio.create_task(run_dashboard(source, Console(file=Lines(), width=80)))
    async with asyncio.timeout(10):
        await source.asked.wait()
    source.failure = StateError("the agent is gone")
    with pytest.raises(StateError, match="the agent is gone"):
        await task
    assert source.reading == 0


async def test_a_state_that_does_not_come_is_told_once_and_asked_for_again(fast, monkeypatch):
    monkeypatch.setattr(source_module, "STATUS_TIMEOUT_S", 0.01)

    class Slow(FakeSource):
        looks = 0

        async def status(self):
            self.looks += 1
            if self.looks in (1, 2, 4):
                await asyncio.Event().wait()
            return await super().status()

    source, out = Slow(), Lines()
    task = asyncio.create_task(run_dashboard(source, Console(file=out, width=80)))
    await out.has("pdctl     | chat is ready: http://127.0.0.1:8000")
    async with asyncio.timeout(10):
        while source.looks < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await cancelled(task)
    told = [text for text in out.getvalue().splitlines() if "no state of the deployment came within 0.01 s" in text]
    assert len(told) == 2


async def test_logs_that_cannot_be_read_for_a_while_are_read_again(fast, monkeypatch):
    monkeypatch.setattr(source_module, "RETRY_LOGS_S", 0.01)

    class Broken(FakeSource):
        tails = ()

        async def logs(self, *, follow, tail):
            self.tails += (tail,)
            if len(self.tails) == 1:
                raise HostError("host far: cannot logs: no space")
            async for entry in super().logs(follow=follow, tail=tail):
                yield entry

    source, out = Broken(), Lines()
    task = asyncio.create_task(run_dashboard(source, Console(file=out, width=80)))
    await out.has("pdctl     | host far: cannot logs: no space")
    source.lines.put_nowait(line("again"))
    await out.has("router    | again")
    await cancelled(task)
    assert source.tails == (500, 0)


async def test_what_the_output_cannot_hold_is_replaced(fast):
    source, raw = FakeSource(), io.BytesIO()
    task = asyncio.create_task(run_dashboard(source, Console(file=io.TextIOWrapper(raw, "latin-1"), width=80)))
    source.lines.put_nowait(line("déjà vu 日本 ✓"))
    async with asyncio.timeout(10):
        while "déjà vu ?? ?\n".encode("latin-1") not in raw.getvalue():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await cancelled(task)


def test_only_changes_are_told():
    assert changes(deployment(), deployment()) == []
    assert changes(deployment(starting(20)), deployment(starting(39))) == []
    assert changes(deployment(starting(39)), deployment(starting(40))) == ["prefill-0: loading weights 20%"]
    assert changes(deployment(starting(0)), deployment(starting(0, step="warming up"))) == ["prefill-0: warming up 0%"]


def test_an_exit_is_told_with_its_reason():
    before = deployment(process("decode-0"))
    after = deployment(
        process("decode-0", state="exited", exit_code=-11), state="degraded", reason="decode-0 exited (signal 11)"
    )
    assert changes(before, after) == [
        "decode-0: exited (signal 11)",
        "chat is degraded: decode-0 exited (signal 11)",
    ]


def test_a_restart_is_told_even_if_no_poll_saw_it_down():
    before, after = deployment(process("decode-0", pid=5)), deployment(process("decode-0", pid=6))
    assert changes(before, after) == ["decode-0: ready (pid 6)"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": "restarting", "exit_code": 1, "restart_in_s": 3.0}, "decode-0: restarting (code 1)"),
        ({"state": "failed", "exit_code": -9}, "decode-0: failed (signal 9)"),
        ({"state": "ready", "pid": 5, "draining": True}, "decode-0: ready (pid 5), draining"),
        ({"state": "unreachable"}, "decode-0: unreachable"),
    ],
)
def test_states(fields, text):
    assert changes(deployment(process("decode-0", pid=5)), deployment(process("decode-0", **fields))) == [text]
