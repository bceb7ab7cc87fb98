"""The engine with the fewest prompt tokens in flight."""

from collections.abc import Sequence

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return ProcessTokens()


class ProcessTokens:
    """For prefill: its work grows with the prompts' tokens, not with the number of requests."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The least loaded; among equals the one whose last request is the longest ago."""
        best = candidates[0]
        if len(candidates) == 1:
            return best
        least = best.load.tokens
        for instance in candidates:  # by hand: min() with a key takes twice as long
            tokens = instance.load.tokens
            if tokens < least or (tokens == least and instance.load.turn < best.load.turn):
                best, least = instance, tokens
        return best
