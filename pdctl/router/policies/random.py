"""Any engine."""

import random
from collections.abc import Sequence

from pdctl.router.instance import Instance


class Random:
    """Uniform and independent."""

    def choose(self, candidates: Sequence[Instance]) -> Instance:
        """Any candidate."""
        return random.choice(candidates)
