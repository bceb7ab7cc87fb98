from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.deployment.store import DeploymentFolder, Store
from tests.deployment.deployment_harness import living
from tests.processes import kill_all


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test alone; in the end, nothing that was started with it may live."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("PDCTL_STATE_DIR", str(tmp_path / "state"))
    yield runtime
    left = living(runtime)
    kill_all(left)
    assert not left, f"left behind: {left}"


@pytest.fixture
def folder(runtime: Path, tmp_path: Path) -> DeploymentFolder:
    folder = Store(tmp_path / "state").folder("d")
    folder.path.mkdir(mode=0o700, parents=True)
    return folder
