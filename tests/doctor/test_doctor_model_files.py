"""What a host says of a model's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from pdctl.agent import model_files
from pdctl.agent.model_files import examine_model
from pdctl.doctor.system import Model

LARGE = 40 << 20  # bytes: more than is read whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files, with what else lies in such folders."""
    folder = tmp_path / "m"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("words")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(b"\x10" * 2048)
    return folder


def look(model: Path | str, **options: Any) -> Model:
    return Model.model_validate(examine_model(str(model), **{"read": True, **options}))


def test_a_folder(folder: Path):
    model = look(folder)
    names = ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    assert (model.kind, model.exists, list(model.files)) == ("path", True, names)
    assert (model.missing, model.pointers) == ((), ())
    assert model.files["model-1.safetensors"] == model.files["model-2.safetensors"]
    assert model.files["config.json"].size == 2
    assert {file.digest for file in look(folder, read=False).files.values()} == {None}


def test_what_an_index_names_and_is_not_there(folder: Path):
    (folder / "model-2.safetensors").unlink()
    assert look(folder, read=False).missing == ("model-2.safetensors",)
    (folder / "model.safetensors.index.json").write_text("{")
    assert look(folder).missing == ("the weight_map of model.safetensors.index.json",)


def test_what_git_lfs_has_not_fetched(folder: Path):
    (folder / "model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    assert look(folder, read=False).pointers == ("model-2.safetensors",)


@pytest.mark.parametrize("offset", [0, LARGE // 2, LARGE - 1])
def test_large_files_with_other_weights_are_told_apart(tmp_path: Path, offset: int):
    """Of equal size and header, as another training of one model has."""
    file = tmp_path / "m.gguf"
    with file.open("wb") as weights:
        weights.truncate(LARGE)
    before = look(file).files["m.gguf"]
    with file.open("r+b") as weights:
        weights.seek(offset)
        weights.write(b"\x01")
    after = look(file).files["m.gguf"]
    assert (before.size, after.size) == (LARGE, LARGE)
    assert before.digest != after.digest


def test_a_large_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_files, "_WHOLE_BYTES", 0)
    file = tmp_path / "m.gguf"
    with file.open("wb") as weights:
        weights.truncate(1 << 40)  # a terabyte of nothing
    assert look(file).files["m.gguf"].size == 1 << 40


def test_a_model_that_is_not_there(tmp_path: Path):
    model = look(tmp_path / "none" / "m")
    assert (model.exists, model.path) == (False, str(tmp_path / "none" / "m"))
    assert model.free_bytes > 0


def test_a_name_that_only_the_engine_knows():
    assert look("smollm2-135m-instruct").kind == "name"


@pytest.mark.parametrize(
    ("variables", "hub"),
    [
        ({"HF_HUB_CACHE": "{tmp}/hub"}, None),
        ({"HF_HOME": "{tmp}"}, None),
        ({"XDG_CACHE_HOME": "{tmp}/cache"}, None),
        ({"HF_HOME": "/elsewhere"}, "{tmp}/hub"),  # the engine's own variable counts
    ],
)
def test_a_model_of_the_hub(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hub: str | None
):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    cache = tmp_path / "cache/huggingface/hub" if "XDG_CACHE_HOME" in variables else tmp_path / "hub"
    kept = cache / "models--org--m"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("abc")
    (kept / "snapshots").mkdir()
    (kept / "snapshots/abc").symlink_to(folder)
    model = look("org/m", hub=hub and hub.format(tmp=tmp_path))
    assert (model.kind, model.commit, model.exists, len(model.files)) == ("hub", "abc", True, 4)


def test_a_model_that_the_hub_s_cache_has_not(tmp_path: Path):
    model = look("org/m", hub=str(tmp_path))
    assert (model.kind, model.exists, model.path) == ("hub", False, str(tmp_path / "models--org--m"))
    (tmp_path / "models--org--m/blobs").mkdir(parents=True)  # begun, no more
    assert not look("org/m", hub=str(tmp_path)).exists
