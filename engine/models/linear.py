"""Matrix products with a fixed weight: the fastest kernel for it, chosen once, when the model is loaded.

Measured on one core of an Ice Lake server (no bfloat16 instructions): all products of a step of SmolLM2-135M,
milliseconds for 1 / 8 / 128 / 512 tokens.

    bfloat16, torch's linear            34 / 112 / 900 / 3466
    float32, torch's linear             43 / 143 / 330 /  959
    float32, transposed weight          43 /  89 / 309 / 1065
    float32 x 16-bit weight, FBGEMM     32 /  40 / 314 / 1000

On one core of a Sapphire Rapids server (AMX), without the logits, for 1 / 8 / 64 / 512 tokens:

    bfloat16, torch's linear            33 /  27 /  36 /  130
    bfloat16, oneDNN's order            22 /  19 /  26 /   97
"""

import warnings
from typing import Protocol

import torch
from torch.nn import functional

from engine.models.precision import Precision


class Linear(Protocol):
    """``x @ weight.T + bias`` for x [tokens, in] in the compute type."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, out]."""
        ...


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision) -> Linear:
    """Prepare a weight [out, in] for products in the given precision."""
    weight = weight.to(precision.storage)
    if precision.compute == torch.bfloat16:
        return _native_linear(weight, None if bias is None else bias.to(torch.bfloat16))
    weight = weight.float()
    bias = None if bias is None else bias.to(precision.storage).float()
    if precision.storage == torch.bfloat16 and _has_fbgemm() and _fits_float16(weight):
        return _PackedLinear(weight, bias)
    return _TransposedLinear(weight, bias)


def _native_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    return _ReorderedLinear(weight, bias) if _has_onednn() else _NativeLinear(weight, bias)


class _ReorderedLinear:
    """Weights in the order that oneDNN's kernels read, as torch's own compiler lays out frozen ones."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _reordered_product(x, self._weight, self._bias, "none", [], "")
        return product


class _NativeLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)


class _PackedLinear:
    """Float32 arithmetic on float16 weights: bfloat16 weights from 2**-17 to 65504 stay exact, lesser err by 2**-25."""

    # torch deprecates these two for linear_prepack_fp16 and linear_dynamic_fp16 of torch.ops.quantized: the same
    # kernels, but a call of those takes 20 microseconds more, and a step of SmolLM2 makes 121.

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._packed, self._bias)


class _TransposedLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight.t().contiguous()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)


_reordered_product = torch.ops.mkldnn._linear_pointwise.default
warnings.filterwarnings("ignore", message="fbgemm_.*fp16.* is deprecated", category=UserWarning)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _has_fbgemm() -> bool:
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def _fits_float16(weight: torch.Tensor) -> bool:
    least, most = weight.aminmax()
    return bool(torch.maximum(-least, most) <= torch.finfo(torch.float16).max)
