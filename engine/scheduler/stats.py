"""What the engine core counts."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0  # prompts complete, each counted once
    local_compute: int = 0  # prompt tokens computed here, and tokens computed anew after a preemption
    local_cache_hit: int = 0  # prompt tokens found in the prefix cache
    kv_transfer: int = 0  # prompt tokens whose KV came from a peer
    generated_tokens: int = 0  # handed to on_tokens; a held request's first tokens count where they are decoded on
    preemptions: int = 0


class CoreStats(NamedTuple):
    """The engine core's state between two steps."""

    running: int  # sequences in the steps (a request has n)
    waiting: int  # requests, preempted sequences and reservations that wait for blocks or a place
    held: int  # requests submitted with hold and not yet released
    reserved: int  # reservations granted, not yet started or cancelled
    blocks_total: int
    blocks_free: int  # the evictable ones of the prefix cache among them
    prompt_tokens: int
    local_compute: int
    local_cache_hit: int
    kv_transfer: int
    generated_tokens: int
    preemptions: int
