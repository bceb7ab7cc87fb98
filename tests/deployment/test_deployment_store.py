"""The state folder: where it is, who may change it, and what happens when it is damaged or cannot be written."""

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest

from pdctl.deployment.store import DeploymentFolder, ProcessId, State, Store, new_run_id, state_root
from pdctl.errors import NotFoundError, StateError
from tests.deployment.deployment_harness import make_plan


def state(phase: str = "verified") -> State:
    return State.model_validate({"run_id": "r", "phase": phase, "owner": ProcessId.own(), "started": 1.5})


def known(store: Store, name: str, phase: str = "verified") -> None:
    store.folder(name).path.mkdir(parents=True)
    store.folder(name).write_state(state(phase))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PDCTL_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
        ({"XDG_STATE_HOME": "/b"}, "/b/pdctl"),
        ({}, "/home/u/.local/state/pdctl"),
    ],
)
def test_where_it_is(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PDCTL_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/u"} | environment).items():
        monkeypatch.setenv(name, value)
    assert state_root() == Path(expected)


def test_what_is_written_is_read(folder: DeploymentFolder) -> None:
    assert (folder.read_state(), folder.read_plan()) == (None, None)
    folder.write_state(state())
    folder.write_plan(make_plan())
    assert folder.read_state() == state()
    assert folder.read_plan() == make_plan()


def test_a_plan_with_secrets_is_for_its_user_only(folder: DeploymentFolder) -> None:
    folder.write_plan(make_plan())
    assert (folder.path / "plan.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 2, "run_id": "r"}'])
def test_a_damaged_or_foreign_state_is_refused(folder: DeploymentFolder, content: str) -> None:
    (folder.path / "state.json").write_text(content)
    with pytest.raises(StateError, match=r"state\.json is damaged or of another version.*remove"):
        folder.read_state()


def test_a_state_of_a_later_version_is_refused(folder: DeploymentFolder) -> None:
    content = json.loads(state().model_dump_json()) | {"version": 2}
    (folder.path / "state.json").write_text(json.dumps(content))
    with pytest.raises(StateError, match="another version"):
        folder.read_state()


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="PDCTL_STATE_DIR"):
        async with Store(tmp_path / "file").folder("d").lock(0):
            pass


def test_a_full_disk_leaves_the_old_state(folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_state(state("starting"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StateError, match="No space left on device"):
        folder.write_state(state("verified"))
    assert folder.read_state() == state("starting")
    assert [path.name for path in folder.path.iterdir()] == ["state.json"]


async def test_one_changes_it_at_a_time(folder: DeploymentFolder) -> None:
    async with folder.lock(0):
        folder.write_state(state("starting"))
        with pytest.raises(StateError, match=rf"started or stopped by pid {os.getpid()}: wait for it .*pdctl down"):
            async with folder.lock(0):
                pass
    async with folder.lock(0):
        pass


async def test_waiting_for_the_other(folder: DeploymentFolder) -> None:
    entered = asyncio.Event()
    release = asyncio.Event()

    async def first() -> None:
        async with folder.lock(0):
            entered.set()
            await release.wait()

    task = asyncio.create_task(first())
    await entered.wait()
    asyncio.get_running_loop().call_later(0.1, release.set)
    async with folder.lock(20):
        assert task.done()


def test_identities_survive_neither_exit_nor_boot() -> None:
    own = ProcessId.own()
    assert own.is_alive()
    assert not own.model_copy(update={"start": own.start + 1}).is_alive()
    assert not own.model_copy(update={"boot": "another"}).is_alive()
    assert not own.model_copy(update={"pid": 2**22 + 1}).is_alive()


def test_run_ids_differ() -> None:
    assert new_run_id() != new_run_id()


def test_choosing_the_only_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(NotFoundError, match="pdctl up"):
        store.choose(None)
    known(store, "a")
    assert store.choose(None).name == "a"
    known(store, "b", "down")
    assert store.choose(None).name == "a"  # the only one that runs
    assert store.choose("b").name == "b"
    with pytest.raises(NotFoundError, match="no deployment 'c' here, only: a, b"):
        store.choose("c")


def test_choosing_among_several(tmp_path: Path) -> None:
    store = Store(tmp_path)
    known(store, "a")
    known(store, "b")
    with pytest.raises(NotFoundError, match="--name: a, b"):
        store.choose(None)
    known(store, "default")
    with pytest.raises(NotFoundError, match=r"several deployments run: .*--name: a, b, default"):
        store.choose(None)
    for name in ("a", "b", "default"):
        store.folder(name).write_state(state("down"))
    assert store.choose(None).name == "default"  # whose logs can be read


def test_one_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    known(store, "a")
    known(store, "b", "down")
    known(store, "default")
    (store.folder("default").path / "state.json").write_text("{")
    assert store.choose(None).name == "a"
    with pytest.raises(StateError, match="damaged"):
        store.choose("default").read_state()
