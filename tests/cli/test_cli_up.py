"""`pdctl up` in the foreground: what leaving its view means."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from pdctl.cli import up
from pdctl.cli.terminal import Terminal
from pdctl.topology.loading import load_topology


class Foreground:
    """A launcher in its view, with a deployment that drains until it is told that it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setenv("PDCTL_STATE_DIR", str(folder))
        self.state = SimpleNamespace(phase="verified", endpoint="http://x:1")
        self.label = ""
        self.quit, self.held, self.draining, self.drained = (asyncio.Event() for _ in range(4))
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.was_patient = False
        monkeypatch.setattr(up, "show_deployment", self._view)
        monkeypatch.setattr(up, "launch", self._launch)
        monkeypatch.setattr(up, "hold", self._hold)
        launcher = up._Launcher(load_topology(None), up.Limits(), Terminal())
        self.serving = asyncio.create_task(launcher._serve_in_view(SimpleNamespace(state=self.state), AsyncExitStack()))

    async def _view(self, *_: object, quit_label: str) -> None:
        self.label = quit_label
        await self.quit.wait()

    async def _launch(self, *_: object, **__: object) -> None:
        pass

    async def _hold(self, *_: object) -> None:
        try:
            self.held.set()
            await self.died
        finally:
            self.draining.set()
            await self.drained.wait()
            self.was_patient = True

    async def leave_the_view(self) -> None:
        self.quit.set()
        for _ in range(5):  # until all that follows from it has run
            await asyncio.sleep(0)


@pytest.fixture
async def foreground(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Foreground:
    foreground = Foreground(monkeypatch, tmp_path)
    await foreground.held.wait()
    return foreground


async def test_leaving_the_view_stops_the_deployment_and_is_called_so(foreground: Foreground) -> None:
    assert foreground.label == "stop and quit"
    await foreground.leave_the_view()
    await foreground.draining.wait()
    foreground.drained.set()
    with pytest.raises(asyncio.CancelledError):
        await foreground.serving
    assert foreground.was_patient


async def test_leaving_the_view_after_an_interrupt_kills_nothing(foreground: Foreground) -> None:
    foreground.serving.cancel()
    await foreground.draining.wait()
    await foreground.leave_the_view()
    foreground.drained.set()
    with pytest.raises(asyncio.CancelledError):
        await foreground.serving
    assert foreground.was_patient


async def test_leaving_the_view_after_a_death_kills_nothing(foreground: Foreground) -> None:
    foreground.died.set_exception(RuntimeError("decode-0 died"))
    await foreground.draining.wait()
    foreground.state.phase = "stopping"
    await foreground.leave_the_view()
    foreground.drained.set()
    with pytest.raises(RuntimeError, match="decode-0 died"):
        await foreground.serving
    assert foreground.was_patient
