"""The configuration in a GGUF file's metadata."""

from engine.errors import ModelError
from engine.loading.gguf_header import GGUFHeader
from engine.models.config import Family, ModelConfig


def read_config(header: GGUFHeader) -> ModelConfig:
    """The model's shape. Raises ModelError if this engine does not run the model."""
    family = _family(header)
    heads = header.get(f"{family}.attention.head_count", int)
    hidden = header.get(f"{family}.embedding_length", int)
    head_dim = header.get(f"{family}.attention.key_length", int, hidden // heads)
    _check_supported(header, family, head_dim)
    return ModelConfig(
        family=family,
        vocab_size=_embedding_rows(header),
        hidden_size=hidden,
        num_layers=header.get(f"{family}.block_count", int),
        num_heads=heads,
        num_kv_heads=header.get(f"{family}.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        intermediate_size=header.get(f"{family}.feed_forward_length", int),
        max_positions=header.get(f"{family}.context_length", int),
        norm_eps=header.get(f"{family}.attention.layer_norm_rms_epsilon", float),
        rope_theta=header.get(f"{family}.rope.freq_base", float, 10000.0),
        rope_factor=_rope_factor(header, family),
        tied_embeddings="output.weight" not in header.tensors,
        eos_token_ids=_eos_token_ids(header),
    )


def _family(header: GGUFHeader) -> Family:
    name = header.get("general.architecture", str)
    if name not in set(Family):
        raise ModelError(f"{header.path.name} holds a {name!r} model; this engine runs {', '.join(Family)}")
    return Family(name)


def _check_supported(header: GGUFHeader, family: Family, head_dim: int) -> None:
    if header.get("split.count", int, 1) > 1:
        raise ModelError(f"{header.path.name} is one of several parts, which this engine does not join")
    rotary = header.get(f"{family}.rope.dimension_count", int, head_dim)
    if rotary != head_dim:
        raise ModelError(f"{header.path.name} rotates {rotary} of {head_dim} dimensions of a head; this engine, all")


def _rope_factor(header: GGUFHeader, family: Family) -> float:
    kind = header.get(f"{family}.rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        raise ModelError(f"{header.path.name} scales its rotary positions by {kind!r}; this engine knows linear only")
    return header.get(f"{family}.rope.scaling.factor", float, 1.0) if kind == "linear" else 1.0


def _embedding_rows(header: GGUFHeader) -> int:
    if "token_embd.weight" not in header.tensors:
        raise ModelError(f"{header.path.name} has no tensor 'token_embd.weight'")
    return header.tensors["token_embd.weight"].shape[0]


def _eos_token_ids(header: GGUFHeader) -> frozenset[int]:
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot")]
    return frozenset(header.get(key, int) for key in keys if key in header.metadata)
