"""A model's files: found, and checked to be whole, in a fraction of a second. Torch comes with the weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.loading import folder_config
from engine.loading.names import resolve_model
from engine.loading.shards import find_shards
from engine.models.config import ModelConfig

if TYPE_CHECKING:
    from engine.loading.tokenizer import Tokenizer
    from engine.models.weights import Weights


class ModelFiles(Protocol):
    """What a model consists of. Everything here raises ModelError for what is missing, damaged or unknown."""

    path: Path
    config: ModelConfig

    def load_tokenizer(self) -> "Tokenizer":
        """Build the tokenizer, with the chat template."""
        ...

    def load_weights(self) -> "Weights":
        """Open the weights; imports torch."""
        ...


def open_model(name: str) -> ModelFiles:
    """Find the model of an alias, a path or a hub id, and check its files. Raises ModelError."""
    path = resolve_model(name)
    return _Folder(path) if path.is_dir() else _GGUFFile(path)


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = folder_config.read_config(path)
        self._shards = find_shards(path)

    def load_tokenizer(self) -> "Tokenizer":
        from engine.loading.folder_tokenizer import load_tokenizer

        return load_tokenizer(self.path, self.config.eos_token_ids)

    def load_weights(self) -> "Weights":
        from engine.loading.safetensors import SafetensorsWeights

        return SafetensorsWeights(self._shards)


class _GGUFFile:
    def __init__(self, path: Path) -> None:
        from engine.loading import gguf_config
        from engine.loading.gguf_header import read_header

        self.path = path
        self._header = read_header(path)
        self.config = gguf_config.read_config(self._header)

    def load_tokenizer(self) -> "Tokenizer":
        from engine.loading.gguf_tokenizer import load_tokenizer

        return load_tokenizer(self._header, self.config.eos_token_ids)

    def load_weights(self) -> "Weights":
        from engine.loading.gguf import GGUFWeights

        return GGUFWeights(self._header, self.config)
