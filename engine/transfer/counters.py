"""What KV transfer has done since the engine's start, by transport and peer."""

from dataclasses import dataclass, field
from typing import Literal

_MAX_PAIRS = 1024  # engines that come and go must not add up


@dataclass(slots=True)
class PairCounters:
    """Between this engine and one peer, by one transport."""

    bytes: int = 0
    seconds: float = 0.0  # spent copying
    pushes: int = 0  # sent: chunks pushed; received: requests delivered
    connected: int = 0  # connections now

    def pushed(self, nbytes: int, seconds: float) -> None:
        """Count a push, or a request's whole delivery."""
        self.bytes += nbytes
        self.seconds += seconds
        self.pushes += 1


@dataclass(slots=True)
class TransferCounters:
    """One side of KV transfer. Owned by the event loop."""

    direction: Literal["sent", "received"]
    failures: int = 0  # requests that ended in a TransferError
    pending: int = 0  # requests whose KV is on its way, or waited for
    mismatches: int = 0  # received: requests whose checksum was wrong
    pairs: dict[tuple[str, str], PairCounters] = field(default_factory=dict)  # by (transport, peer engine's id)

    def pair(self, transport: str, peer: str) -> PairCounters:
        """The counters of a transport and a peer. The oldest that is not connected makes way for one too many."""
        pair = self.pairs.get((transport, peer))
        if pair is None:
            self._make_way()
            pair = self.pairs[transport, peer] = PairCounters()
        return pair

    def _make_way(self) -> None:
        if len(self.pairs) < _MAX_PAIRS:
            return
        gone = next((key for key, pair in self.pairs.items() if not pair.connected), None)
        if gone is not None:
            del self.pairs[gone]
