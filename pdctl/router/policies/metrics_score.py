"""The engine that reports the fewest requests, those that wait counted more."""

from collections.abc import Sequence

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask

_WAITING = 4  # a waiting request counts as this many running ones


def create(_: PrefixIndex) -> Policy:
    """The policy."""
    return MetricsScore()


class MetricsScore:
    """For engines that serve others than this router too: their own reports (load_reports.py) tell of those."""

    def choose(self, candidates: Sequence[Instance], ask: Ask) -> Instance:
        """The lowest score; among equals the one whose last request is the longest ago."""
        best = candidates[0]
        if len(candidates) == 1:
            return best
        least = _score(best)
        for instance in candidates:
            score = _score(instance)
            if score < least or (score == least and instance.load.turn < best.load.turn):
                best, least = instance, score
        return best


def _score(instance: Instance) -> float:
    in_flight = instance.load.requests
    reported = instance.reported
    if reported is None:  # never, or not lately
        return in_flight
    # What has been assigned since counts at once, or all requests until the next report would go to one engine.
    return reported.running + _WAITING * reported.waiting + in_flight - reported.in_flight
