"""The builtin engine, split: prefill and decode get the same body, and find each other by what it says of the pair."""

from pdctl.router.body import Body, complete_body
from pdctl.router.pairs import Pair
from pdctl.router.protocols.base import Bodies


class Builtin:
    """Adds `request_id` and `disaggregate_info`."""

    def bodies(self, body: Body, request_id: str, pair: Pair) -> Bodies:
        """One body for both legs."""
        both = complete_body(body, request_id, pair.info)
        return Bodies(both, both)
