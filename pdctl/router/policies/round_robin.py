"""One engine after the other."""

from collections.abc import Sequence

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return RoundRobin()


class RoundRobin:
    """Takes turns, in each worker process by itself; engines that come and go shift the order."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The next candidate."""
        self._turn += 1
        return candidates[self._turn % len(candidates)]
