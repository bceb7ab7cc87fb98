"""Whether a model is on this host, whole, and the same as on others, without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

_SUFFIXES = (
    *(".safetensors", ".gguf", ".bin", ".pt", ".pdparams"),
    *(".json", ".model", ".tiktoken", ".txt", ".jinja", ".py"),
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WHOLE_BYTES = 32 << 20  # a tokenizer is below it
_SAMPLE_BYTES = 64 << 10
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024


def examine_model(model: str, hub: Optional[str] = None, *, read: bool) -> Dict[str, Any]:
    """What is here of a model that is a path, or of a hub id in ``hub`` (None: where this environment keeps it).

    ``kind``: path, hub, or name where only the engine knows what is meant. ``files``: their sizes and, if they are to
    be ``read``, digests: of a large one of its begin, middle and end. ``missing``: those that an index names.
    ``pointers``: what Git LFS left in a file's place. ``free_bytes``: where the model is, or would be downloaded to.
    """
    if model.startswith("/") or model.endswith(".gguf"):
        return {"kind": "path", **_examine(Path(model), read=read)}
    if _HUB_ID.fullmatch(model):
        return {"kind": "hub", **_examine_cached(_hub_folder(hub), model, read=read)}
    return {"kind": "name", "path": model, "exists": False, "free_bytes": 0}


def _examine_cached(hub: Path, model: str, *, read: bool) -> Dict[str, Any]:
    """The snapshot that the cache has of a hub's main branch."""
    folder = hub / f"models--{model.replace('/', '--')}"
    try:
        commit = (folder / "refs/main").read_text().strip()
    except OSError:
        return _examine(folder, read=read) if not folder.exists() else {**_absent(folder), "path": str(folder)}
    return {**_examine(folder / "snapshots" / commit, read=read), "commit": commit}


def _examine(path: Path, *, read: bool) -> Dict[str, Any]:
    if not path.exists():
        return _absent(path)
    found = _files(path) if path.is_dir() else [path]
    return {
        "path": str(path),
        "exists": True,
        "files": {file.name: _file(file, read=read) for file in found},
        "missing": _missing(path),
        "pointers": [file.name for file in found if _is_pointer(file)],
        "free_bytes": _free(path),
    }


def _absent(path: Path) -> Dict[str, Any]:
    return {"path": str(path), "exists": False, "free_bytes": _free(path)}


def _files(folder: Path) -> List[Path]:
    """Those that an engine reads; links into a cache count as what they lead to."""
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())


def _file(path: Path, *, read: bool) -> Dict[str, Any]:
    size = path.stat().st_size
    return {"size": size, "digest": _digest(path, size) if read else None}


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        for offset in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _missing(folder: Path) -> List[str]:
    named = {file for index in folder.glob("*.index.json") for file in _named(index)} if folder.is_dir() else set()
    return sorted(file for file in named if not (folder / file).is_file())


def _named(index: Path) -> List[str]:
    """The files of an index, or its own name where it cannot be read."""
    try:
        return [str(file) for file in json.loads(index.read_bytes())["weight_map"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"the weight_map of {index.name}"]


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _hub_folder(given: Optional[str]) -> Path:
    """As huggingface_hub finds it."""
    if given:
        return Path(given).expanduser()
    own = os.environ.get("HF_HUB_CACHE")
    if own:
        return Path(own).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "hub"


def _free(path: Path) -> int:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free
