"""Logits become tokens. A token depends on its logits and on (seed, choice, position) alone."""

from typing import NamedTuple

import numpy as np
import torch

from engine.scheduler.request import SamplingParams

_FIRST_CANDIDATES = 1024  # tokens among which top_p is looked for first: sorting all of a vocabulary is slow

_SEED_MASK = 2**64 - 1  # seeds may be negative; numpy's may not
_TINY = 1e-30


class Draw(NamedTuple):
    """One token to choose."""

    sampling: SamplingParams
    choice: int  # its number among the n of the request
    position: int  # of the token, in the sequence


def sample(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    """Choose a token for each row of logits [draws, vocab]."""
    tokens = _best(logits)
    random = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if random:
        chosen = _sample_random(logits[random], [draws[row] for row in random])
        for row, token in zip(random, chosen, strict=True):
            tokens[row] = token
    return tokens


def _sample_random(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    samplings = [draw.sampling for draw in draws]
    scores = logits / torch.tensor([sampling.temperature for sampling in samplings])[:, None]
    filtered = [row for row, sampling in enumerate(samplings) if sampling.top_k > 0 or sampling.top_p < 1]
    if filtered:
        least = _least_kept(scores[filtered], [samplings[row] for row in filtered])
        scores[filtered] = scores[filtered].masked_fill_(scores[filtered] < least, -torch.inf)
    noise = torch.from_numpy(np.stack([_noise(draw, logits.shape[1]) for draw in draws]))
    # The first of exponential clocks that run at rates p is a draw from p; here, in logarithms.
    return _best(scores.sub_(noise.clamp_min_(_TINY).log_()))


def _best(scores: torch.Tensor) -> list[int]:
    best: list[int] = scores.numpy().argmax(axis=-1).tolist()  # ten times as fast as torch's
    return best


def _least_kept(scores: torch.Tensor, samplings: list[SamplingParams]) -> torch.Tensor:
    """The lowest score [rows, 1] that top_k, and after it top_p, leave. What equals it stays, too."""
    vocab = scores.shape[1]
    top_k = torch.tensor([min(sampling.top_k or vocab, vocab) for sampling in samplings])[:, None]
    top_p = torch.tensor([sampling.top_p for sampling in samplings])[:, None]
    width = min(vocab, max([_FIRST_CANDIDATES, *(sampling.top_k for sampling in samplings)]))
    while True:
        best = scores.topk(width).values
        best = best.masked_fill_(torch.arange(width) >= top_k, -torch.inf)
        total = torch.where(top_k < vocab, best.logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True))
        shares = (best - total).exp_()
        before = shares.cumsum(-1).sub_(shares)
        if width == vocab or bool(((before[:, -1:] >= top_p) | (top_k <= width)).all()):
            break
        width = vocab
    kept = (before < top_p) & (best > -torch.inf)
    return best.gather(1, kept.sum(-1, keepdim=True).sub_(1).clamp_min_(0))


def _noise(draw: Draw, size: int) -> np.ndarray:
    """Exponentially distributed numbers, one for each token, that follow from the draw alone."""
    key = (draw.sampling.seed & _SEED_MASK, draw.choice, draw.position)
    return np.random.Generator(np.random.Philox(seed=key)).standard_exponential(size, dtype=np.float32)
