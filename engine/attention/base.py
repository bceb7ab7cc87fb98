"""What a model asks of attention."""

from typing import Protocol

import torch

from engine.scheduler.batch import Batch


class AttentionBackend(Protocol):
    """Attention over the KV pool: plan a batch once, then go through its layers in any order."""

    def plan(self, batch: Batch) -> None:
        """Prepare what all layers of this batch share. Tokens are the chunks' tokens, one chunk after the other."""
        ...

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Write k and v [tokens, kv_heads, dim] to the pool and attend with q [tokens, heads, dim].

        Each token sees its sequence up to itself. Returns [tokens, heads * dim].
        """
        ...
