"""The engine with the fewest requests in flight."""

from collections.abc import Sequence

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return RequestNum()


class RequestNum:
    """For decode: a step's time grows with the number of sequences in it."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The least loaded; among equals the one whose last request is the longest ago."""
        best = candidates[0]
        if len(candidates) == 1:
            return best
        least = best.load.requests
        for instance in candidates:  # by hand: min() with a key takes twice as long
            requests = instance.load.requests
            if requests < least or (requests == least and instance.load.turn < best.load.turn):
                best, least = instance, requests
        return best
