"""A GGUF file of a model folder, laid out as llama.cpp's converter lays it out."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.engine.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_gguf(
    folder: Path,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: dict[str, torch.Tensor] | None = None,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Write the folder's model to ``path``, its matrices in type ``kind``; return its tensors as in the folder.

    ``extra`` adds tensors. ``metadata`` adds keys, with ``__`` for a dot, and replaces those of the same name.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, config["model_type"])
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    _add_metadata(writer, config, folder, {key.replace("__", "."): value for key, value in metadata.items()})
    for name, tensor in tensors.items():
        rows = _llama_cpp_order(name, tensor, config)
        if tensor.dim() == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(_gguf_name(name), rows.numpy())
        else:
            writer.add_tensor(_gguf_name(name), quantize(rows.numpy(), kind), raw_dtype=kind)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], folder: Path, more: dict[str, Any]) -> None:
    arch = config["model_type"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    values = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.key_length": config["head_dim"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **more,
    }
    for key, value in values.items():
        if value is not None:
            _add(writer, key, value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[list] = writer.add_array
    adders[type(value)](key, value)


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_PARTS[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _llama_cpp_order(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """For a Llama, rows of q and k that rotate together side by side."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None or config["model_type"] != "llama":
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape).contiguous()
