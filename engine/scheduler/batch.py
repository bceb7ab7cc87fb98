"""What the scheduler hands to the runner for one step."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.scheduler.request import Sequence


class Chunk(NamedTuple):
    """A run of one sequence's tokens to compute in this step: a piece of its prompt, or its newest token.

    The KV of tokens[start : start + length] is written to the sequence's blocks, which the scheduler has allocated.
    Chunks that reach the end of the sequence's tokens are sampled: `samples` tokens each, one per choice index counting
    from the sequence's own (more than one only for the last chunk of a prompt with n > 1).
    """

    sequence: Sequence
    start: int
    length: int
    samples: int  # 0: do not sample


@dataclass(slots=True)
class Batch:
    """One step's work. Copies are done first."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]] = field(default_factory=list)  # (source block, destination block)


class Runner(Protocol):
    """Computes batches. Called from the engine core's thread only."""

    block_size: int  # tokens per KV block
    num_blocks: int

    def execute(self, batch: Batch) -> list[list[int]]:
        """Compute the batch; return for each chunk its `samples` new token ids."""
        ...
