"""The engines that get requests, by the model that they serve."""

from collections.abc import Iterable

from pdctl.router.engines.instance import Instance
from pdctl.router.engines.pairs import Pair, mismatch


class Group:
    """One model's engines that get requests. An engine without a model's name is in every group."""

    def __init__(self, model: str, instances: Iterable[Instance]) -> None:
        self.model = model
        ready = [i for i in instances if i.registration.model in ("", model)]
        self.prefill = _trusted([i for i in ready if i.registration.role == "prefill"])
        self.decode = _trusted([i for i in ready if i.registration.role == "decode"])
        self.mixed = _trusted([i for i in ready if i.registration.role == "mixed"])
        self._partners = {p.key: [d for d in self.decode if mismatch(p, d) is None] for p in self.prefill}
        self.paired = [p for p in self.prefill if self._partners[p.key]]  # prefill that have a decode partner
        self.selective = [d for d in self.decode if not d.protocol.splits_all]  # share not every request with a prefill
        self._pairs: dict[tuple[str, str], Pair] = {}

    def partners(self, prefill: Instance) -> list[Instance]:
        """The decode instances that can work with a prefill instance; none if it gets no requests."""
        return self._partners.get(prefill.key, [])

    def pair(self, prefill: Instance | None, decode: Instance) -> Pair:
        """The pair of two instances."""
        key = (prefill.key if prefill else "", decode.key)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = Pair(prefill, decode)
        return pair

    def misfit(self) -> str | None:
        """Why no prefill instance can work with any decode instance, though there are some of both."""
        if self.paired or not self.prefill or not self.decode:
            return None
        reason = mismatch(self.prefill[0], self.decode[0])
        return f"no prefill instance can work with a decode instance: {reason}"


def _trusted(instances: list[Instance]) -> list[Instance]:
    """Those whose breaker admits requests; if there are none, all: a bad engine is better than no engine."""
    return [i for i in instances if i.breaker.admits] or instances
