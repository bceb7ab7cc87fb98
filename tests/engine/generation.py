"""Sequences and steps by hand: what the scheduler does, without the scheduler."""

import random

import torch

from engine.attention.sdpa import SdpaAttention
from engine.kv.pool import KVPool
from engine.loading.files import open_model
from engine.loading.model import load_model
from engine.runner.runner import TorchRunner
from engine.scheduler.batch import Batch, Chunk
from engine.scheduler.request import Request, SamplingParams, Sequence

GREEDY = SamplingParams(max_tokens=64, temperature=0.0)


def load(name, dtype="float32"):
    return load_model(open_model(str(name)), dtype)


def make_runner(model, num_blocks=400):
    return TorchRunner(model, KVPool(model.kv_layout(16), num_blocks))


def blocks_in_random_order(num_blocks, seed=0):
    """An iterator over all blocks; sequences take theirs from it."""
    blocks = list(range(num_blocks))
    random.Random(seed).shuffle(blocks)
    return iter(blocks)


def sequence(prompt, blocks, length=None, sampling=GREEDY, index=0):
    """A sequence with blocks for ``length`` tokens (64 more than the prompt)."""
    count = -(-(length or len(prompt) + 64) // 16)
    request = Request("request", list(prompt), sampling)
    return Sequence(request, index, list(prompt), [next(blocks) for _ in range(count)])


def prompt_chunks(seq, size=10**9, start=0):
    """The sequence's tokens in chunks; the last one is sampled."""
    end = len(seq.tokens)
    starts = range(start, end, size)
    return [Chunk(seq, s, min(size, end - s), int(s + size >= end)) for s in starts]


def prefill(runner, seq, size=10**9):
    """Compute the sequence's tokens and append the next one."""
    for chunk in prompt_chunks(seq, size):
        tokens = runner.execute(Batch([chunk]))[0]
    seq.tokens.extend(tokens)


def decode(runner, sequences, steps):
    """Take all sequences ``steps`` tokens further, together."""
    for _ in range(steps):
        chunks = [Chunk(seq, len(seq.tokens) - 1, 1, 1) for seq in sequences]
        for seq, tokens in zip(sequences, runner.execute(Batch(chunks)), strict=True):
            seq.tokens.extend(tokens)


def all_logits(model, tokens, num_blocks=200):
    """Logits [tokens, vocab] of one sequence, computed at once."""
    pool = KVPool(model.kv_layout(16), num_blocks)
    attention = SdpaAttention(pool, model.precision.compute, model.config.num_heads)
    seq = sequence(tokens, blocks_in_random_order(num_blocks))
    with torch.inference_mode():
        attention.plan(Batch([Chunk(seq, 0, len(tokens), 1)]))
        positions = torch.arange(len(tokens))
        return model.logits(model.hidden_states(torch.tensor(tokens), positions, positions, attention))
