"""Layers that the families share. Activations are [tokens, ...]: there is no padding."""

import math

import torch

from engine.models.config import Llama3RopeScaling, ModelConfig


class RMSNorm:
    """Root mean square normalisation of the last dimension, in float32."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self._scale = weight.float() * math.sqrt(size)
        self._least = torch.tensor(math.sqrt(size * eps))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return a new tensor of x's type."""
        norm: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / norm.hypot_(self._least)).mul_(self._scale).to(x.dtype)


class Rotary:
    """Rotary position embedding of q and k whose rotating pairs are neighbours: one complex product."""

    def __init__(self, config: ModelConfig, frequency_divisors: torch.Tensor | None = None) -> None:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        frequencies = 1.0 / (config.rope_theta**exponents * config.rope_factor)
        if config.rope_scaling is not None:
            frequencies = _stretch(frequencies, config.rope_scaling)
        if frequency_divisors is not None:
            frequencies = frequencies / frequency_divisors.float()
        self._frequencies = frequencies

    def rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """The factors [tokens, 1, dim / 2] of the positions [tokens]."""
        angles = positions.float()[:, None, None] * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)

    def rotate_(self, heads: torch.Tensor, rotation: torch.Tensor) -> None:
        """Rotate [tokens, heads, dim] in place."""
        pairs = heads.view(*heads.shape[:-1], -1, 2)
        if heads.dtype == torch.float32:
            torch.view_as_complex(pairs).mul_(rotation)
        else:
            pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(rotation)))


def pair_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order the rows of q or k so that the pairs that rotate together, halves of a head before, become neighbours.

    Products of q and k do not depend on that order, as long as both have the same.
    """
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _stretch(frequencies: torch.Tensor, scaling: Llama3RopeScaling) -> torch.Tensor:
    """Llama 3.1: slow rotations become slower by the factor, fast ones stay, with a smooth passage between."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(frequencies / scaling.factor, frequencies, smooth.clamp(0, 1))
