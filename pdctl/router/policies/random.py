"""Any engine."""

from collections.abc import Sequence
from random import random

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return Random()


class Random:
    """Uniform and independent."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """Any candidate."""
        return candidates[int(random() * len(candidates))]
