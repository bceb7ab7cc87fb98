"""Weights from a GGUF file."""

import re
from collections.abc import Collection
from math import prod

import numpy as np
import torch
from gguf.quants import dequantize

from engine.errors import ModelError
from engine.loading.gguf_header import GGUFHeader, TensorInfo
from engine.models.config import Family, ModelConfig

_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_PARTS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",  # divides the rotary frequencies (Llama 3)
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GGUFWeights:
    """The tensors of a GGUF file, dequantised to float32, by their Hugging Face names."""

    def __init__(self, header: GGUFHeader, config: ModelConfig) -> None:
        self._file = header.path.name
        self._data = np.memmap(header.path, np.uint8, "r")
        self._infos = {_hugging_face_name(name): info for name, info in header.tensors.items()}
        self._paired_heads = {}
        if config.family == Family.LLAMA:
            self._paired_heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    @property
    def names(self) -> Collection[str]:
        """All tensors of the file."""
        return self._infos.keys()

    def tensor(self, name: str) -> torch.Tensor:
        """Read and dequantise one tensor."""
        if name not in self._infos:
            raise ModelError(f"{self._file} has no tensor {name!r}")
        values = self._read(name, self._infos[name])
        heads = self._paired_heads.get(name.split(".")[-2])
        return _halves(values, heads) if heads else values

    def _read(self, name: str, info: TensorInfo) -> torch.Tensor:
        raw = self._data[info.offset : info.offset + info.nbytes].reshape(
            -1, info.nbytes // max(1, prod(info.shape[:-1]))
        )
        try:
            values = dequantize(raw, info.type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self._file}: tensor {name!r} has type {info.type.name}, which cannot be read"
            ) from error
        return torch.from_numpy(np.require(values, requirements="W")).view(info.shape)


def _hugging_face_name(name: str) -> str:
    if match := _LAYER_TENSOR.fullmatch(name):
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER_PARTS.get(part, part)}.{kind}"
    return _MODEL_PARTS.get(name, name)


def _halves(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order of a Llama's q and k: there, the rows that rotate together are neighbours."""
    return values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
