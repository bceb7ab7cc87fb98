"""Always the same engine for a session, as long as it is not overloaded."""

from collections.abc import Sequence
from hashlib import blake2b

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.policies.request_num import RequestNum
from pdctl.router.requests.ask import Ask

_FACTOR = 2  # times the average of requests in flight ...
_SLACK = 8  # ... and this many more are no overload


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return SessionAffinity()


class SessionAffinity:
    """Rendezvous hashing: every worker process finds the same engine, and nothing has to be remembered.

    An engine that comes or goes moves only the sessions that it gets or had (Thaler, Ravishankar: Using name-based
    mappings to increase hit rates, 1998). An engine with too many requests in flight is passed over (Mirrokni, Thorup,
    Zadimoghaddam: Consistent hashing with bounded loads, arXiv 1608.01350). Requests without a session go by
    request_num.
    """

    def __init__(self) -> None:
        self._without_session = RequestNum()

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The first in the session's order that is not overloaded."""
        if len(candidates) == 1:
            return candidates[0]
        if not ask.session:
            return self._without_session.choose(candidates, ask)
        requests = [instance.load.requests for instance in candidates]
        room = _FACTOR * (sum(requests) + 1) / len(candidates) + _SLACK  # more than the least loaded has
        session = blake2b(ask.session, digest_size=16)
        best, highest = candidates[0], b""
        for instance, load in zip(candidates, requests, strict=True):
            if load < room:
                weight = session.copy()
                weight.update(instance.key.encode())
                digest = weight.digest()
                if digest > highest:
                    best, highest = instance, digest
        return best
