"""Two random engines, the one with fewer requests in flight."""

from collections.abc import Sequence
from random import random

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return PowerOfTwo()


class PowerOfTwo:
    """Nearly as even as the least loaded of all, and routers that know little of each other do not run to the same."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """Of two distinct candidates the less loaded; of equals the one whose last request is the longer ago."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        i, j = int(random() * count), int(random() * (count - 1))
        first, second = candidates[i], candidates[j if j < i else j + 1]
        a, b = first.load.requests, second.load.requests
        if a == b:
            return first if first.load.turn < second.load.turn else second
        return first if a < b else second
