"""Requests, and the sequences of tokens that they become."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen. Stop strings are the server's business, not the scheduler's."""

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    seed: int = 0  # always set; the token at position p of choice i depends on (seed, i, p) alone
    n: int = 1  # choices
    stop_token_ids: frozenset[int] = frozenset()  # end of sequence; empty with ignore_eos


@dataclass(frozen=True, slots=True)
class Request:
    """What the server asks of the engine core."""

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    text_keys: tuple[tuple[int, bytes], ...] = ()  # names of its beginnings: (length in tokens, key), shortest first


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request: its tokens, and where their KV lies."""

    request: Request
    index: int  # the choice's number, 0..n-1
    tokens: list[int]  # prompt, then generated
    block_table: list[int] = field(default_factory=list)  # KV block ids, in token order
    num_computed: int = 0  # leading tokens whose KV is in the blocks
    num_cached: int = 0  # leading prompt tokens whose KV was in the prefix cache at first
    preempted: bool = False  # it has been in the steps before, and gave up its blocks

    @property
    def num_prompt(self) -> int:
        """The prompt's length in tokens."""
        return len(self.request.prompt)

    @property
    def num_generated(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - len(self.request.prompt)


class Token(NamedTuple):
    """A generated token on its way to the server."""

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    token_id: int
    finish_reason: FinishReason | None
    cached_tokens: int = 0  # of the prompt; told with the tokens of choice 0
