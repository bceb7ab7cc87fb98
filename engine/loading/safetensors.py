"""Weights from the safetensors files of a Hugging Face folder."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelError

_FLOATING = (torch.float32, torch.bfloat16, torch.float16)


class SafetensorsWeights:
    """The tensors of a folder, in the types of its files."""

    def __init__(self, tensors: dict[str, Path]) -> None:
        self._paths = tensors
        self._files: dict[Path, Any] = {path: _open(path) for path in set(tensors.values())}  # safe_open has no types

    @property
    def names(self) -> Collection[str]:
        """All tensors of the folder."""
        return self._paths.keys()

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        if name not in self._paths:
            raise ModelError(f"the model's files have no tensor {name!r}")
        path = self._paths[name]
        tensor: torch.Tensor = self._files[path].get_tensor(name)
        if tensor.dtype not in _FLOATING:
            raise ModelError(f"{path.name}: tensor {name!r} has type {tensor.dtype}, which cannot be read")
        return tensor


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ModelError(f"{path.name} is damaged: {error}") from error
