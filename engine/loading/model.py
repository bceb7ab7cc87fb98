"""Files become a model that can be run."""

import hashlib
import threading
from collections.abc import Callable, Collection

import torch

from engine.errors import ModelError
from engine.loading.files import ModelFiles
from engine.models.llama import Llama
from engine.models.precision import choose_precision
from engine.models.weights import Weights

Progress = Callable[[int, int], None]  # tensors done, tensors in all

_SAMPLES = 64  # values of a tensor that go into the fingerprint: all of them would take as long as loading
_NEEDLESS = (".rotary_emb.inv_freq", "lm_head.weight")  # what some files hold besides; a head that is needed is read


def load_model(files: ModelFiles, dtype: str = "auto", progress: Progress | None = None) -> Llama:
    """Load the weights. ``progress`` is called in threads of the loader, one call at a time. Raises ModelError."""
    weights = _TrackedWeights(files.load_weights(), progress)
    model = Llama(files.config, weights, choose_precision(dtype))
    if unused := weights.unused():
        names = ", ".join(sorted(unused)[:3])
        raise ModelError(f"{files.path.name} is no plain {files.config.family} model: nothing here uses its {names}")
    model.fingerprint = weights.fingerprint()
    return model


class _TrackedWeights:
    """Weights that report how many of them have been read, and remember a sample of each."""

    def __init__(self, weights: Weights, progress: Progress | None) -> None:
        self._weights = weights
        self._progress = progress
        self._samples: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> Collection[str]:
        return self._weights.names

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._weights.tensor(name)
        sample = _sample(tensor)
        with self._lock:
            self._samples[name] = sample
            if self._progress is not None:
                self._progress(len(self._samples), len(self.names))
        return tensor

    def fingerprint(self) -> str:
        """A hash that differs where weights differ, in whatever files and types they are kept."""
        digest = hashlib.sha256()
        for name, sample in sorted(self._samples.items()):
            digest.update(name.encode() + sample)
        return digest.hexdigest()

    def unused(self) -> set[str]:
        """What the model has, but was not asked for."""
        return {name for name in self.names if name not in self._samples and not name.endswith(_NEEDLESS)}


def _sample(tensor: torch.Tensor) -> bytes:
    values = tensor.flatten()
    return values[:: max(1, len(values) // _SAMPLES)].to(torch.bfloat16).view(torch.int16).numpy().tobytes()
