"""The sizes that bound the scheduler, and which requests can never fit them."""

from typing import NamedTuple

from engine.errors import EngineError, RequestError


class Limits(NamedTuple):
    """Fixed when the engine starts, so any thread may read them."""

    block_size: int  # tokens per KV block
    num_blocks: int
    max_num_seqs: int  # sequences in one step
    max_batched_tokens: int  # tokens in one step
    max_model_len: int  # tokens of one sequence, prompt and answer

    @property
    def max_length(self) -> int:
        """The tokens that end a sequence: the model's length, or one more than the pool's (the last needs no KV)."""
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def check(self) -> None:
        """Raise EngineError where no schedule could work."""
        if min(self) < 1:
            raise EngineError(f"every limit of the engine must be at least 1: {self}")
        if self.max_batched_tokens < self.max_num_seqs:
            raise EngineError(
                f"max_batched_tokens ({self.max_batched_tokens}) is less than max_num_seqs ({self.max_num_seqs}): "
                "a step needs one token for each sequence"
            )

    def check_request(self, prompt: list[int], n: int = 1) -> None:
        """Raise RequestError where the request could never be scheduled."""
        if not prompt:
            raise RequestError("The prompt is empty: send at least one token.")
        if len(prompt) >= self.max_model_len:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens; with at least one token to generate, it must stay below this "
                f"model's context length of {self.max_model_len}. Shorten the prompt.",
                code="context_length_exceeded",
            )
        if self.blocks_for(len(prompt)) > self.num_blocks:
            raise RequestError(
                f"The prompt's {len(prompt)} tokens need {self.blocks_for(len(prompt))} KV blocks and this engine has "
                f"{self.num_blocks}. Shorten the prompt or give the engine more blocks.",
                code="context_length_exceeded",
            )
        if n > self.max_num_seqs:
            raise RequestError(f"n is {n}, but this engine runs at most {self.max_num_seqs} sequences at once.")
