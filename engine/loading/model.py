"""Files become a model that can be run."""

import threading
from collections.abc import Callable, Collection

import torch

from engine.errors import ModelError
from engine.loading.files import ModelFiles
from engine.models.llama import Llama
from engine.models.precision import choose_precision
from engine.models.weights import Weights

Progress = Callable[[int, int], None]  # tensors done, tensors in all

_NEEDLESS = (".rotary_emb.inv_freq", "lm_head.weight")  # what some files hold besides; a head that is needed is read


def load_model(files: ModelFiles, dtype: str = "auto", progress: Progress | None = None) -> Llama:
    """Load the weights. ``progress`` is called in threads of the loader, one call at a time. Raises ModelError."""
    weights = _TrackedWeights(files.load_weights(), progress)
    model = Llama(files.config, weights, choose_precision(dtype))
    if unused := weights.unused():
        names = ", ".join(sorted(unused)[:3])
        raise ModelError(f"{files.path.name} is no plain {files.config.family} model: nothing here uses its {names}")
    return model


class _TrackedWeights:
    """Weights that report how many of them have been read."""

    def __init__(self, weights: Weights, progress: Progress | None) -> None:
        self._weights = weights
        self._progress = progress
        self._read: set[str] = set()
        self._lock = threading.Lock()

    @property
    def names(self) -> Collection[str]:
        return self._weights.names

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._weights.tensor(name)
        with self._lock:
            self._read.add(name)
            if self._progress is not None:
                self._progress(len(self._read), len(self.names))
        return tensor

    def unused(self) -> set[str]:
        """What the model has, but was not asked for."""
        return {name for name in self.names if name not in self._read and not name.endswith(_NEEDLESS)}
