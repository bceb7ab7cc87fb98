"""What a protocol is."""

from typing import NamedTuple, Protocol

from pdctl.router.body import Body
from pdctl.router.pairs import Pair


class Bodies(NamedTuple):
    """The bodies of a request's legs; both are sent at once. No prefill leg: None."""

    prefill: bytes | None
    decode: bytes


class LegProtocol(Protocol):
    """How a client's body becomes the bodies of its legs."""

    def bodies(self, body: Body, request_id: str, pair: Pair) -> Bodies:
        """The bodies for the pair's engines."""
        ...
