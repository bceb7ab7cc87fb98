"""The configuration in a Hugging Face folder's config.json."""

from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.loading.json_files import read_json
from engine.models.config import Family, Llama3RopeScaling, ModelConfig

_DEFAULT_THETA = 10000.0


def read_config(folder: Path) -> ModelConfig:
    """The model's shape. Raises ModelError if this engine does not run the model."""
    raw = read_json(folder / "config.json")
    try:
        return _config(folder, raw)
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} has no {error.args[0]!r}, which this engine needs") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged: {error}") from error


def _config(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    family = _family(folder, raw)
    rope = _rope_parameters(raw)
    heads = _size(raw, "num_attention_heads")
    _check_supported(folder, raw, rope)
    return ModelConfig(
        family=family,
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=_size(raw, "hidden_size"),
        num_layers=_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate_size=_size(raw, "intermediate_size"),
        max_positions=_max_positions(raw),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or _DEFAULT_THETA),
        rope_factor=float(rope["factor"]) if _rope_kind(rope) == "linear" else 1.0,
        rope_scaling=_llama3(rope) if _rope_kind(rope) == "llama3" else None,
        tied_embeddings=raw.get("tie_word_embeddings", False),
        eos_token_ids=_eos_token_ids(folder, raw),
    )


def _size(raw: dict[str, Any], key: str) -> int:
    value = raw[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}, which is no size")
    return value


def _family(folder: Path, raw: dict[str, Any]) -> Family:
    name = raw["model_type"]
    if name not in set(Family):
        raise ModelError(f"{folder} holds a {name!r} model; this engine runs {', '.join(Family)}")
    return Family(name)


def _rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # the newer and the older name


def _rope_kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _check_supported(folder: Path, raw: dict[str, Any], rope: dict[str, Any]) -> None:
    if _rope_kind(rope) not in ("default", "linear", "llama3"):
        raise ModelError(
            f"{folder} scales its rotary positions by {_rope_kind(rope)!r}; this engine knows linear, llama3"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{folder} uses the activation {raw['hidden_act']!r}; this engine has silu only")
    if raw.get("quantization_config"):
        raise ModelError(f"{folder} holds quantized weights; this engine reads them from GGUF files only")
    if (rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ModelError(f"{folder} rotates a part of each head's dimensions; this engine, all")


def _max_positions(raw: dict[str, Any]) -> int:
    """Within the sliding window, where there is one: so far, windowed attention is the same as full attention."""
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    longest: int = raw.get("max_position_embeddings", 2048)
    return min(longest, window) if window else longest


def _llama3(rope: dict[str, Any]) -> Llama3RopeScaling:
    return Llama3RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _eos_token_ids(folder: Path, raw: dict[str, Any]) -> frozenset[int]:
    ids: set[int] = set()
    generation = folder / "generation_config.json"
    for source in (raw, read_json(generation) if generation.exists() else {}):
        value = source.get("eos_token_id")
        ids.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(ids)
