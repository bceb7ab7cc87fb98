"""A runner whose KV is a dictionary: it checks every read, and its tokens depend on the whole prefix alone."""

from collections.abc import Iterable

from engine.scheduler.batch import Batch, Chunk
from engine.scheduler.request import FinishReason, Request

VOCABULARY = 7


def fingerprints(tokens: Iterable[int]) -> list[int]:
    """What the KV at each position stands for: the token there, after all before it."""
    values, value = [], 0
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


def next_token(fingerprint: int, index: int) -> int:
    """The token that choice `index` samples after a prefix."""
    return hash((fingerprint, index)) % VOCABULARY


def first_tokens(request: Request) -> list[int]:
    last = fingerprints(request.prompt)[-1]
    return [next_token(last, index) for index in range(request.sampling.n)]


def expected(request: Request, index: int, max_length: int) -> tuple[list[int], FinishReason]:
    """What a choice of a request generates when nothing else runs."""
    tokens = list(request.prompt)
    while True:
        tokens.append(next_token(fingerprints(tokens)[-1], index))
        if tokens[-1] in request.sampling.stop_token_ids:
            return tokens[len(request.prompt) :], FinishReason.STOP
        if len(tokens) - len(request.prompt) >= request.sampling.max_tokens or len(tokens) >= max_length:
            return tokens[len(request.prompt) :], FinishReason.LENGTH


class FakeRunner:
    """Implements Runner."""

    def __init__(self, block_size: int = 4, num_blocks: int = 16) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.pool: dict[tuple[int, int], int] = {}  # (block, slot): fingerprint
        self.batches: list[Batch] = []

    def execute(self, batch: Batch) -> list[list[int]]:
        self.batches.append(batch)
        self._copy(batch.copies)
        written = [slot for chunk in batch.chunks for slot in self._slots(chunk)]
        assert len(written) == len(set(written)), "two chunks write the same slot"
        for chunk in batch.chunks:
            self._check_reads(chunk, {block for block, _ in written} - {block for block, _ in self._slots(chunk)})
        return [self._compute(chunk) for chunk in batch.chunks]

    def write(self, tokens: list[int], block_table: list[int], start: int, end: int) -> None:
        """Put the KV of tokens[start:end] in place, as a chunk or a peer does."""
        values = fingerprints(tokens)
        for position in range(start, end):
            self.pool[self._slot(block_table, position)] = values[position]

    def holds(self, tokens: list[int], block_table: list[int], end: int) -> bool:
        """Tell whether the KV of tokens[:end] is in the blocks."""
        values = fingerprints(tokens[:end])
        return all(self.pool.get(self._slot(block_table, at)) == value for at, value in enumerate(values))

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        destinations = [destination for _, destination in copies]
        assert len(destinations) == len(set(destinations)), "two copies into one block"
        contents = [[self.pool.get((source, slot), 0) for slot in range(self.block_size)] for source, _ in copies]
        for destination, content in zip(destinations, contents, strict=True):
            self.pool.update({(destination, slot): value for slot, value in enumerate(content)})

    def _check_reads(self, chunk: Chunk, written_by_others: set[int]) -> None:
        sequence = chunk.sequence
        assert chunk.length > 0
        assert len(set(sequence.block_table)) == len(sequence.block_table)
        assert not written_by_others & set(sequence.block_table), "a chunk uses a block that another one writes"
        assert self.holds(sequence.tokens, sequence.block_table, chunk.start), "KV that was never written, or replaced"

    def _compute(self, chunk: Chunk) -> list[int]:
        sequence, end = chunk.sequence, chunk.start + chunk.length
        self.write(sequence.tokens, sequence.block_table, chunk.start, end)
        assert not chunk.samples or end == len(sequence.tokens), "sampled before the end"
        last = fingerprints(sequence.tokens[:end])[-1]
        return [next_token(last, sequence.index + choice) for choice in range(chunk.samples)]

    def _slots(self, chunk: Chunk) -> list[tuple[int, int]]:
        table = chunk.sequence.block_table
        return [self._slot(table, position) for position in range(chunk.start, chunk.start + chunk.length)]

    def _slot(self, block_table: list[int], position: int) -> tuple[int, int]:
        return block_table[position // self.block_size], position % self.block_size
