"""The engine with the fewest requests in flight."""

from collections.abc import Sequence

from pdctl.router.instance import Instance


class RequestNum:
    """For decode: a step's time grows with the number of sequences in it."""

    def choose(self, candidates: Sequence[Instance]) -> Instance:
        """The least loaded; among equals the one whose last request is the longest ago."""
        return min(candidates, key=_requests)


def _requests(instance: Instance) -> tuple[int, int]:
    return instance.load.requests, instance.load.turn
