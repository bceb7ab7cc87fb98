"""Engines that prefill and decode: one leg."""

from pdctl.router.body import Body, complete_body
from pdctl.router.pairs import Pair
from pdctl.router.protocols.base import Bodies


class Mixed:
    """Adds `request_id`."""

    def bodies(self, body: Body, request_id: str, pair: Pair) -> Bodies:
        """One body, no prefill leg."""
        return Bodies(None, complete_body(body, request_id))
