"""A model's shape, whatever file it was read from."""

from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """The model families that this engine runs; values are Hugging Face's ``model_type`` and GGUF's architecture."""

    LLAMA = "llama"  # SmolLM2 too
    MISTRAL = "mistral"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama-family decoder. Biases are not here: a layer has one where the weights have one."""

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    tied_embeddings: bool
    rope_factor: float = 1.0  # linear scaling: positions are divided by it
    rope_scaling: Llama3RopeScaling | None = None
    eos_token_ids: frozenset[int] = frozenset()
