"""In which types a model is kept, and in which it is computed. The one place that decides."""

from typing import NamedTuple

import torch

from engine.errors import ModelError


class Precision(NamedTuple):
    """``storage`` is what weights and KV are rounded to and what the user asks for; ``compute`` what is calculated in.

    They differ on a CPU without bfloat16 instructions. There, bfloat16 matrix products are emulated at a third to a
    tenth of float32's speed, so that bfloat16 models are computed in float32.
    """

    storage: torch.dtype
    compute: torch.dtype


def choose_precision(dtype: str) -> Precision:
    """The precision for ``--dtype``: ``auto`` is bfloat16. Raises ModelError for a type that is not built."""
    if dtype == "float32":
        return Precision(torch.float32, torch.float32)
    if dtype not in ("auto", "bfloat16"):
        raise ModelError(f"dtype {dtype!r} is not built; use auto, bfloat16 or float32")
    return Precision(torch.bfloat16, torch.bfloat16 if _cpu_has_bfloat16() else torch.float32)


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
