"""Where a model takes its weights from."""

from collections.abc import Collection
from typing import Protocol

import torch


class Weights(Protocol):
    """Tensors by their Hugging Face names, whatever files they lie in. May be asked from several threads."""

    @property
    def names(self) -> Collection[str]:
        """All tensors of the model."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, rows first, in a floating type. Raises ModelError if it is missing or cannot be read."""
        ...
