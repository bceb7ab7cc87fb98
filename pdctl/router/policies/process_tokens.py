"""The engine with the fewest prompt tokens in flight."""

from collections.abc import Sequence

from pdctl.router.instance import Instance


class ProcessTokens:
    """For prefill: its work grows with the prompts' tokens, not with the number of requests."""

    def choose(self, candidates: Sequence[Instance]) -> Instance:
        """The least loaded; among equals the one whose last request is the longest ago."""
        return min(candidates, key=_tokens)


def _tokens(instance: Instance) -> tuple[int, int]:
    return instance.load.tokens, instance.load.turn
