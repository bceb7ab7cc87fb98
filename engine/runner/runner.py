"""Batches become tokens, by torch."""

from itertools import accumulate, islice

import torch

from engine.attention.sdpa import SdpaAttention
from engine.kv.pool import KVPool
from engine.models.llama import Llama
from engine.runner.sampler import Draw, sample
from engine.scheduler.batch import Batch, Chunk


class TorchRunner:
    """The Runner of one model on the CPU. ``threads`` sets those of this process's torch; None leaves them."""

    def __init__(self, model: Llama, pool: KVPool, *, threads: int | None = None) -> None:
        self.block_size = pool.layout.block_size
        self.num_blocks = pool.num_blocks
        self._model = model
        self._pool = pool
        self._attention = SdpaAttention(pool, model.precision.compute, model.config.num_heads)
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[list[int]]:
        """Compute the batch; return for each chunk its ``samples`` new token ids."""
        for source, destination in batch.copies:
            self._pool.tensor[destination] = self._pool.tensor[source]
        chunks = batch.chunks
        ends = list(accumulate(chunk.length for chunk in chunks))
        sampled = [(end - 1, chunk) for end, chunk in zip(ends, chunks, strict=True) if chunk.samples]
        self._attention.plan(batch)
        hidden = self._model.hidden_states(
            torch.tensor([token for c in chunks for token in c.sequence.tokens[c.start : c.start + c.length]]),
            torch.cat([torch.arange(c.start, c.start + c.length) for c in chunks]),
            torch.tensor([row for row, _ in sampled], dtype=torch.long),
            self._attention,
        )
        tokens = iter(self._sample(hidden, [chunk for _, chunk in sampled]))
        return [list(islice(tokens, chunk.samples)) for chunk in chunks]

    def _sample(self, hidden: torch.Tensor, chunks: list[Chunk]) -> list[int]:
        """Tokens for the hidden states [chunks, hidden], in order: as many for each as the chunk asks for."""
        if not chunks:
            return []
        logits = self._model.logits(hidden)
        counts = [chunk.samples for chunk in chunks]
        if max(counts) > 1:
            logits = logits.repeat_interleave(torch.tensor(counts), dim=0)
        return sample(logits, [draw for chunk in chunks for draw in _draws(chunk)])


def _draws(chunk: Chunk) -> list[Draw]:
    sequence, position = chunk.sequence, chunk.start + chunk.length
    sampling = sequence.request.sampling
    return [Draw(sampling, sequence.index + choice, position) for choice in range(chunk.samples)]
