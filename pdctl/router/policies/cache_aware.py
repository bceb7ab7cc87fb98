"""The engine that has the least to do with a request, for what it already holds of its prompt."""

from collections.abc import Sequence

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask

_ANSWER = 256  # tokens that a request in flight is taken to generate; how many it will be is not known


def create(index: PrefixIndex) -> Policy:
    """The policy."""
    return CacheAware(index)


class CacheAware:
    """Weighs cache hits against queueing in one unit: an engine's tokens in flight plus those of the prompt it lacks.

    For prefill that is the work until the prompt is done. For decode and mixed it is the KV that the engine's steps
    read, plus what has to be brought or computed; there each request counts for its answer too. Requests in flight
    count in full, cached or not: so the chosen engine never has more than the least loaded one and this prompt, and
    equal prompts do not pile up on one engine.
    """

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The lowest cost; among equals the one whose last request is the longest ago."""
        if len(candidates) == 1:
            return candidates[0]
        matched, prefix = self._index.matched, ask.prefix
        answer = 0 if candidates[0].registration.role == "prefill" else _ANSWER
        best, least = candidates[0], -1
        for instance in candidates:
            load = instance.load
            cost = load.tokens + answer * load.requests + ask.uncached(matched(instance.key, prefix))
            if least < 0 or cost < least or (cost == least and load.turn < best.load.turn):
                best, least = instance, cost
        return best
