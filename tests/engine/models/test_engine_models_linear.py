import pytest
import torch

from engine.models.linear import make_linear
from engine.models.precision import Precision, choose_precision

BF16, F32 = torch.bfloat16, torch.float32
KINDS = [Precision(F32, F32), Precision(BF16, F32), Precision(BF16, BF16)]


@pytest.mark.parametrize("precision", KINDS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 8, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_in_every_precision(precision, tokens, with_bias):
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(tokens, 64)
    linear = make_linear(weight, bias if with_bias else None, precision)
    rounded = weight.to(precision.storage).double()
    expected = x.double() @ rounded.t() + (bias.to(precision.storage).double() if with_bias else 0)
    tolerance = {F32: 1e-4, BF16: 0.3}[precision.compute]
    product = linear(x.to(precision.compute))
    assert product.dtype == precision.compute
    torch.testing.assert_close(product.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4, 1e9])
def test_bfloat16_weights_are_exact_when_computed_in_float32(scale):
    """Also weights that float16 cannot hold."""
    weight, x = (torch.randn(32, 64) * scale).to(BF16), torch.randn(4, 64)
    product = make_linear(weight, None, Precision(BF16, F32))(x)
    torch.testing.assert_close(product / scale, x @ weight.float().t() / scale, atol=1e-4, rtol=1e-5)


def test_dtype_names():
    assert choose_precision("float32") == Precision(F32, F32)
    assert choose_precision("bfloat16") == choose_precision("auto")
    assert choose_precision("bfloat16").storage == BF16


@pytest.mark.parametrize(("flags", "compute"), [({"avx512_bf16": True}, BF16), ({"amx_bf16": False}, F32), ({}, F32)])
def test_bfloat16_is_computed_where_the_cpu_can(monkeypatch, flags, compute):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert choose_precision("bfloat16") == Precision(BF16, compute)
