import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.sdpa import _PIECE, SdpaAttention
from engine.kv.pool import KVLayout, KVPool
from engine.scheduler.batch import Batch, Chunk
from tests.engine.generation import blocks_in_random_order, sequence

HEADS, KV_HEADS, DIM, LAYERS, BLOCKS = 6, 2, 8, 3, 96
SPANS = st.tuples(st.integers(0, 70), st.one_of(st.just(1), st.integers(1, 40)))  # tokens before, tokens in the chunk
TYPES = [
    (torch.float32, torch.float32, 1e-5),
    (torch.bfloat16, torch.float32, 2e-2),
    (torch.bfloat16, torch.bfloat16, 4e-2),
]


class History:
    """K and V of each sequence's tokens, [layer, token, kv_head, dim], written through the backend in chunks."""

    def __init__(self, lengths, dtype, seed=0, compute=torch.float32):
        layout = KVLayout(KV_HEADS, LAYERS, 16, DIM, dtype)
        torch.manual_seed(seed)
        blocks = blocks_in_random_order(BLOCKS, seed)
        self.pool = KVPool(layout, BLOCKS)
        self.pool.tensor.fill_(torch.nan)  # what is not written must not be read
        self.attention = SdpaAttention(self.pool, compute, HEADS)
        self.sequences = [sequence([0] * n, blocks, length=n) for n in lengths]
        self.q, self.k, self.v = (
            [torch.randn(LAYERS, n, h, DIM).to(compute) for n in lengths] for h in (HEADS, KV_HEADS, KV_HEADS)
        )

    def attend(self, spans, layer):
        """Compute tokens [start, end) of each sequence in one batch; return each one's output."""
        chunks = [Chunk(s, a, b - a, 0) for s, (a, b) in zip(self.sequences, spans, strict=True) if b > a]
        self.attention.plan(Batch(chunks))
        q, k, v = (
            torch.cat([x[layer, a:b] for x, (a, b) in zip(xs, spans, strict=True)]) for xs in (self.q, self.k, self.v)
        )
        return self.attention.forward(q, k, v, layer).split([b - a for a, b in spans])

    def expected(self, index, span, layer):
        """By the definition, in float64, from K and V as the pool keeps them."""
        a, b = span
        q = self.q[index][layer, a:b].double()
        k, v = (x[index][layer, :b].to(self.pool.layout.dtype).double() for x in (self.k, self.v))
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / DIM**0.5
        scores.masked_fill_(torch.ones(b - a, b, dtype=torch.bool).triu(a + 1), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


@settings(max_examples=40, deadline=None)
@given(spans=st.lists(SPANS, min_size=1, max_size=5), layer=st.integers(0, LAYERS - 1), seed=st.integers(0, 99))
@pytest.mark.parametrize(("dtype", "compute", "tolerance"), TYPES)
def test_any_batch_is_attention_by_definition(dtype, compute, tolerance, spans, layer, seed):
    history = History([before + length for before, length in spans], dtype, seed, compute)
    history.pool.tensor.zero_()
    if any(before for before, _ in spans):
        history.attend([(0, before) for before, _ in spans], layer)
    now = [(before, before + length) for before, length in spans]
    for index, out in enumerate(history.attend(now, layer)):
        expected = history.expected(index, now[index], layer)
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("before", "length"), [(0, 2 * _PIECE), (0, _PIECE + 1), (100, 3 * _PIECE - 5)])
@pytest.mark.parametrize(("dtype", "compute", "tolerance"), TYPES)
def test_a_chunk_of_several_pieces(dtype, compute, tolerance, before, length):
    history = History([before + length, 20], dtype, compute=compute)
    history.pool.tensor.zero_()
    if before:
        history.attend([(0, before), (0, 0)], layer=1)
    now = [(before, before + length), (0, 20)]
    for index, out in enumerate(history.attend(now, layer=1)):
        expected = history.expected(index, now[index], layer=1)
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_other_blocks_are_not_read():
    """Sequences of unlike length in one group: padding must not bring in what lies in others' blocks, NaN here."""
    history = History([100, 40, 16], torch.float32)
    spans = [(0, 99), (0, 39), (0, 15)]
    history.attend(spans, layer=1)
    blocks = [block for s in history.sequences for block in s.block_table]
    unwritten = history.pool.tensor[blocks].isnan()
    history.pool.tensor[blocks] = history.pool.tensor[blocks].masked_fill(unwritten, 0.0)
    now = [(99, 100), (39, 40), (15, 16)]
    for index, out in enumerate(history.attend(now, layer=1)):
        torch.testing.assert_close(out.double(), history.expected(index, now[index], 1), atol=1e-5, rtol=1e-5)


def test_very_unlike_lengths_are_not_padded_to_the_longest():
    history = History([1000, 20, 1, 400], torch.float32)
    spans = [(n - 1, n) for n in (1000, 20, 1, 400)]
    history.pool.tensor.zero_()
    history.attend(spans, layer=0)
    gathered = sum(group.mask.numel() for group in history.attention._decodes)
    assert gathered < 1.5 * 1421


def test_layers_do_not_touch_each_other():
    history = History([20], torch.float32)
    history.attend([(0, 20)], layer=1)
    assert not history.pool.tensor[:, :, 0].isfinite().any()
    assert not history.pool.tensor[:, :, 2].isfinite().any()
    table = history.sequences[0].block_table
    written = history.pool.tensor[table, :, 1].transpose(2, 3)  # [block, kv_head, token, k/v, dim]
    keys = written[:, :, :, 0].transpose(1, 2).reshape(32, KV_HEADS, DIM)[:20]
    torch.testing.assert_close(keys, history.k[0][1])
