"""What passes between the scheduler and the transfer of KV: prompts computed here, and blocks reserved for a peer."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Prefilled(NamedTuple):
    """A held request's prompt has grown: the KV of its tokens[start:end] is in the blocks.

    The events of a request follow each other without a gap and begin at 0, whatever the prefix cache held.
    """

    request_id: str
    block_table: list[int]  # the whole prompt's, in token order; the same in every event of a request
    start: int
    end: int
    first_tokens: list[int] | None  # one per choice, with the last event; None before


@dataclass(slots=True, eq=False)
class Reservation:
    """Blocks for a prompt whose KV a peer writes. They belong to the holder until it starts decoding or cancels."""

    request_id: str
    prompt: list[int]
    block_table: list[int] = field(default_factory=list)  # in token order
    cached_tokens: int = 0  # this many leading tokens, whole blocks, are there already: nobody may write their blocks
