"""Llama and its relatives: SmolLM2, Mistral, Qwen2 (biases of q, k and v), Qwen3 (norms of q and k)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional

from engine.attention.base import AttentionBackend
from engine.errors import ModelError
from engine.kv.pool import KVLayout
from engine.models.config import ModelConfig
from engine.models.layers import RMSNorm, Rotary, pair_rows
from engine.models.linear import Linear, make_linear
from engine.models.precision import Precision
from engine.models.weights import Weights

_LOADING_THREADS = 2


class Llama:
    """A decoder that computes a flat list of tokens, of any number of sequences, at their own positions."""

    def __init__(self, config: ModelConfig, weights: Weights, precision: Precision) -> None:
        self.config = config
        self.precision = precision
        self.fingerprint = ""  # of the weights; the loader sets it
        source = _Source(config, weights, precision)
        with ThreadPoolExecutor(_LOADING_THREADS) as threads:
            ends = threads.submit(self._load_ends, source)
            self._layers = list(threads.map(lambda index: _Layer(source, index), range(config.num_layers)))
            self._embedding, self._head = ends.result()
        self._norm = source.norm("model.norm")
        self._rotary = Rotary(config, source.optional("rope_freqs.weight", config.head_dim // 2))

    def _load_ends(self, source: "_Source") -> tuple[torch.Tensor, Linear]:
        shape = self.config.vocab_size, self.config.hidden_size
        embedding = source.tensor("model.embed_tokens.weight", *shape).to(self.precision.storage)
        if self.config.tied_embeddings:
            return embedding, make_linear(embedding, None, self.precision)
        return embedding, make_linear(source.tensor("lm_head.weight", *shape), None, self.precision)

    def kv_layout(self, block_size: int) -> KVLayout:
        """What a KV block of this model holds."""
        config = self.config
        return KVLayout(config.num_kv_heads, config.num_layers, block_size, config.head_dim, self.precision.storage)

    def hidden_states(
        self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        """Compute tokens [tokens] at positions [tokens], writing their KV; return [rows, hidden] of the rows asked for.

        ``attention`` has planned the batch. The last layer computes no other rows than those.
        """
        x = self._embedding.index_select(0, token_ids).to(self.precision.compute)
        rotation = self._rotary.rotation(positions)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            attended = layer.attend(x, self._rotary, rotation, attention)
            if index == last:
                x, attended = x.index_select(0, rows), attended.index_select(0, rows)
            x = layer.finish(x, attended)
        return self._norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [rows, vocab] of hidden states [rows, hidden]."""
        return self._head(hidden).float()


class _Layer:
    def __init__(self, source: "_Source", index: int) -> None:
        config, prefix = source.config, f"model.layers.{index}."
        self._index = index
        self._heads, self._kv_heads, self._dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._input_norm = source.norm(f"{prefix}input_layernorm")
        self._qkv = source.qkv(f"{prefix}self_attn.")
        self._qk_norm = source.qk_norm(f"{prefix}self_attn.")
        self._output = source.linear(f"{prefix}self_attn.o_proj", out=config.hidden_size, inp=self._heads * self._dim)
        self._mlp_norm = source.norm(f"{prefix}post_attention_layernorm")
        self._gate_up = source.gate_up(f"{prefix}mlp.")
        self._down = source.linear(f"{prefix}mlp.down_proj", out=config.hidden_size, inp=config.intermediate_size)

    def attend(
        self, x: torch.Tensor, rotary: Rotary, rotation: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        qkv = self._qkv(self._input_norm(x)).view(x.shape[0], -1, self._dim)
        rotated = qkv[:, : self._heads + self._kv_heads]
        if self._qk_norm is not None:
            rotated.copy_(self._qk_norm(rotated))
        rotary.rotate_(rotated, rotation)
        q, k, v = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        return attention.forward(q, k, v, self._index)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add attention's output and the MLP's to the residual stream x, in place."""
        x += self._output(attended)
        gate, up = self._gate_up(self._mlp_norm(x)).chunk(2, dim=-1)
        x += self._down(functional.silu(gate).mul_(up))
        return x


class _Source:
    """Takes a model's layers out of its weights, with the shapes that its configuration promises."""

    def __init__(self, config: ModelConfig, weights: Weights, precision: Precision) -> None:
        self.config = config
        self._weights = weights
        self._precision = precision

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._weights.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"tensor {name!r} has shape {list(tensor.shape)}; the configuration says {list(shape)}")
        return tensor

    def optional(self, name: str, *shape: int) -> torch.Tensor | None:
        return self.tensor(name, *shape) if name in self._weights.names else None

    def norm(self, name: str) -> RMSNorm:
        return self._norm(self.tensor(f"{name}.weight", self.config.hidden_size))

    def linear(self, name: str, *, out: int, inp: int) -> Linear:
        bias = self.optional(f"{name}.bias", out)
        return make_linear(self.tensor(f"{name}.weight", out, inp), bias, self._precision)

    def gate_up(self, prefix: str) -> Linear:
        shape = self.config.intermediate_size, self.config.hidden_size
        parts = [self.tensor(f"{prefix}{name}_proj.weight", *shape) for name in ("gate", "up")]
        return make_linear(torch.cat(parts), None, self._precision)

    def qkv(self, prefix: str) -> Linear:
        weight = torch.cat([self._projection(prefix, name, self.config.hidden_size) for name in "qkv"])
        if f"{prefix}q_proj.bias" not in self._weights.names:
            return make_linear(weight, None, self._precision)
        bias = torch.cat([self._projection(prefix, name) for name in "qkv"])
        return make_linear(weight, bias, self._precision)

    def qk_norm(self, prefix: str) -> RMSNorm | None:
        """One norm for q and k, which lie side by side: [heads + kv_heads, dim]."""
        dim = self.config.head_dim
        q, k = (self.optional(f"{prefix}{name}_norm.weight", dim) for name in "qk")
        if q is None or k is None:
            return None
        counts: Sequence[int] = (self.config.num_heads, self.config.num_kv_heads)
        return self._norm(torch.cat([pair_rows(w, 1).expand(n, dim) for w, n in zip((q, k), counts, strict=True)]))

    def _projection(self, prefix: str, name: str, *columns: int) -> torch.Tensor:
        heads = self.config.num_heads if name == "q" else self.config.num_kv_heads
        kind = "weight" if columns else "bias"
        tensor = self.tensor(f"{prefix}{name}_proj.{kind}", heads * self.config.head_dim, *columns)
        return tensor if name == "v" else pair_rows(tensor, heads)

    def _norm(self, weight: torch.Tensor) -> RMSNorm:
        return RMSNorm(weight.to(self._precision.storage), self.config.norm_eps)
