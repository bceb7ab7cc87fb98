"""What a policy is."""

from collections.abc import Sequence
from typing import Protocol

from pdctl.router.engines.instance import Instance
from pdctl.router.requests.ask import Ask


class Policy(Protocol):
    """Chooses an engine for one request."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """One of the candidates, of which there is at least one."""
        ...
