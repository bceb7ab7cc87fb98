"""Attention by torch's scaled_dot_product_attention: for the CPU, and the reference for other backends.

Sequences that compute one token each are taken together, in groups of similar length: their pages are gathered, padded
to the longest. A longer chunk is computed on its own, a piece after the other: each attends only to what is before it
and in it, and the queries of all heads that share K and V go through them together.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.kv.pool import KVPool
from engine.scheduler.batch import Batch, Chunk

_CHEAP_PADDING = 128  # tokens; a further group costs as much
# Tokens of a piece. 512 tokens alone / after 512 others, one core, bfloat16, one layer of SmolLM2-135M: 5.7 / 15.0 ms;
# in pieces of 64: 6.9 / 14.0, of 256: 6.3 / 15.0, whole: 8.2 / 17.0, whole and with a head at a time: 10.2 / 17.2.
_PIECE = 128


class _Gathered(NamedTuple):
    """Room for the K and V of some sequences, filled for one layer after the other."""

    pages: torch.Tensor  # [k/v * sequences * kv_heads * blocks]: their pages in layer 0
    room: torch.Tensor  # [pages, block_size * dim]
    k: torch.Tensor  # the room, as [sequences, kv_heads, tokens, dim]
    v: torch.Tensor


class _Decodes(NamedTuple):
    """Single tokens of several sequences."""

    rows: torch.Tensor | None  # [sequences]: their places among the batch's tokens; None: they are all of it, in order
    gathered: _Gathered  # padded to the longest
    mask: torch.Tensor  # [sequences, 1, 1, tokens]: 0 or -inf


class _Run(NamedTuple):
    """Several tokens of one sequence; the last ones it has so far."""

    rows: slice  # their places among the batch's tokens
    start: int  # tokens of the sequence before these
    gathered: _Gathered | None  # None: the run is all of the sequence
    masks: list[torch.Tensor]  # of each piece: [heads that share K and V * tokens, tokens up to its end]: 0 or -inf


class SdpaAttention:
    """An AttentionBackend. Computes in the type of the queries, keeps K and V in the pool's."""

    def __init__(self, pool: KVPool, compute: torch.dtype, num_heads: int) -> None:
        layout = pool.layout
        self._groups = num_heads // layout.num_kv_heads  # heads that share K and V
        self._layout = layout
        self._compute = compute
        lines = pool.tensor.view(-1, layout.head_dim)  # one token's K or V of one head
        pages = pool.tensor.view(-1, layout.block_size * layout.head_dim)  # one block's
        # For each layer, from its first one on: there, what is found for layer 0 is right.
        self._lines = [lines[2 * layer * layout.block_size :] for layer in range(layout.num_layers)]
        self._pages = [pages[2 * layer :] for layer in range(layout.num_layers)]
        self._slots = torch.empty(0)
        self._decodes: list[_Decodes] = []
        self._runs: list[_Run] = []

    def plan(self, batch: Batch) -> None:
        """Find the places of the batch's tokens and of what they attend to."""
        self._slots = self._find_slots(batch.chunks)
        starts = accumulate((chunk.length for chunk in batch.chunks), initial=0)
        placed = list(zip(starts, batch.chunks, strict=False))
        self._runs = [self._plan_run(*item) for item in placed if item[1].length > 1]
        groups = _group_by_length([item for item in placed if item[1].length == 1])
        self._decodes = [self._plan_decodes(group, alone=len(group) == len(placed)) for group in groups]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """See AttentionBackend."""
        kv = torch.cat((k, v), dim=1).to(self._layout.dtype)  # [tokens, k/v * kv_heads, dim]
        self._lines[layer].index_copy_(0, self._slots, kv.view(-1, kv.shape[-1]))
        if self._decodes and self._decodes[0].rows is None:
            return self._decode(q, self._decodes[0], layer)
        out = torch.empty(q.shape[0], q.shape[1] * q.shape[2], dtype=q.dtype)
        for run in self._runs:
            out[run.rows] = self._attend(q[run.rows], kv[run.rows], run, layer)
        for group in self._decodes:
            out[group.rows] = self._decode(q[group.rows], group, layer)
        return out

    def _find_slots(self, chunks: list[Chunk]) -> torch.Tensor:
        """Lines of layer 0 for [token, k/v, kv_head]."""
        size = self._layout.block_size
        blocks = [c.sequence.block_table[p // size] for c in chunks for p in range(c.start, c.start + c.length)]
        offsets = [p % size for c in chunks for p in range(c.start, c.start + c.length)]
        pages = self._first_pages(torch.tensor(blocks))[:, None, :] + torch.arange(2)[:, None]
        return (pages * size + torch.tensor(offsets)[:, None, None]).flatten()

    def _plan_run(self, first: int, chunk: Chunk) -> _Run:
        gathered = self._make_room(torch.tensor([self._blocks_of(chunk)])) if chunk.start else None
        rows = slice(first, first + chunk.length)
        return _Run(rows, chunk.start, gathered, [self._mask(chunk, place) for place in range(0, chunk.length, _PIECE)])

    def _mask(self, chunk: Chunk, place: int) -> torch.Tensor:
        """Of the piece at that place of the chunk: nobody sees what comes later."""
        tokens = min(_PIECE, chunk.length - place)
        before = chunk.start + place
        mask = torch.full((tokens, before + tokens), -torch.inf, dtype=self._compute).triu_(before + 1)
        return mask.repeat(self._groups, 1)

    def _plan_decodes(self, group: list[tuple[int, Chunk]], alone: bool) -> _Decodes:
        tables = [self._blocks_of(chunk) for _, chunk in group]
        longest = max(map(len, tables))
        # Padding repeats a sequence's own block: another's must not be read, not even to be masked.
        padded = torch.tensor([table + table[-1:] * (longest - len(table)) for table in tables])
        lengths = torch.tensor([chunk.start + 1 for _, chunk in group])
        hidden = torch.arange(longest * self._layout.block_size) >= lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._layout.dtype).masked_fill_(hidden, -torch.inf)
        rows = None if alone else torch.tensor([row for row, _ in group])
        return _Decodes(rows, self._make_room(padded), mask[:, None, None])

    def _blocks_of(self, chunk: Chunk) -> list[int]:
        return chunk.sequence.block_table[: -(-(chunk.start + chunk.length) // self._layout.block_size)]

    def _first_pages(self, blocks: torch.Tensor) -> torch.Tensor:
        """K pages of layer 0 of [...] blocks: [..., kv_head]."""
        heads = torch.arange(self._layout.num_kv_heads)
        return (blocks[..., None] * self._layout.num_kv_heads + heads) * (2 * self._layout.num_layers)

    def _make_room(self, tables: torch.Tensor) -> _Gathered:
        """For the blocks of block tables [sequences, blocks]."""
        pages = self._first_pages(tables).transpose(1, 2)
        pages = torch.stack((pages, pages + 1)).flatten()
        room = torch.empty(len(pages), self._layout.block_size * self._layout.head_dim, dtype=self._layout.dtype)
        k, v = room.view(2, len(tables), self._layout.num_kv_heads, -1, self._layout.head_dim)
        return _Gathered(pages, room, k, v)

    def _decode(self, q: torch.Tensor, decodes: _Decodes, layer: int) -> torch.Tensor:
        k, v = self._gather(decodes.gathered, layer)
        grouped = q.to(k.dtype).view(q.shape[0], self._layout.num_kv_heads, -1, q.shape[-1])
        out = scaled_dot_product_attention(grouped, k, v, attn_mask=decodes.mask)
        return out.view(q.shape[0], -1).to(q.dtype)

    def _attend(self, q: torch.Tensor, fresh: torch.Tensor, run: _Run, layer: int) -> torch.Tensor:
        kv_heads, total = self._layout.num_kv_heads, run.start + len(q)
        if run.gathered is None:
            k, v = torch.split(fresh.transpose(0, 1), kv_heads)
        else:
            k, v = (room[0, :, :total] for room in self._gather(run.gathered, layer))
        k, v = k.to(q.dtype), v.to(q.dtype)
        pieces = zip(torch.split(q, _PIECE), run.masks, strict=True)
        return torch.cat([self._attend_piece(piece, k, v, mask) for piece, mask in pieces])

    def _attend_piece(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens, _, dim = q.shape
        shape = self._layout.num_kv_heads, self._groups, tokens, dim
        folded = q.view(tokens, shape[0], shape[1], dim).permute(1, 2, 0, 3).reshape(1, shape[0], -1, dim)
        seen = mask.shape[1]
        out = scaled_dot_product_attention(folded, k[None, :, :seen], v[None, :, :seen], attn_mask=mask)
        return out.view(shape).permute(2, 0, 1, 3).reshape(tokens, -1)

    def _gather(self, gathered: _Gathered, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.index_select(self._pages[layer], 0, gathered.pages, out=gathered.room)
        return gathered.k, gathered.v


def _group_by_length(singles: list[tuple[int, Chunk]]) -> list[list[tuple[int, Chunk]]]:
    """Split so that padding to a group's longest at most doubles its tokens, but for short ones."""
    groups: list[list[tuple[int, Chunk]]] = []
    for row, chunk in sorted(singles, key=lambda item: -item[1].start):
        if groups and groups[-1][0][1].start <= 2 * chunk.start + _CHEAP_PADDING:
            groups[-1].append((row, chunk))
        else:
            groups.append([(row, chunk)])
    return [sorted(group, key=lambda item: item[0]) for group in groups]
