"""One engine after the other."""

from collections.abc import Sequence

from pdctl.router.instance import Instance


class RoundRobin:
    """Takes turns; engines that come and go shift the order."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, candidates: Sequence[Instance]) -> Instance:
        """The next candidate."""
        self._turn += 1
        return candidates[(self._turn - 1) % len(candidates)]
