"""Chooses the engines of a request."""

from collections.abc import Container, Sequence
from typing import NamedTuple

import msgspec

from pdctl.router.engines.groups import Group
from pdctl.router.engines.instance import Instance
from pdctl.router.engines.pairs import Pair, mismatch
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.engines.registry import Registry
from pdctl.router.figures.metrics import Metrics
from pdctl.router.policies import make_policy
from pdctl.router.policies.base import Policy
from pdctl.router.protocols import PdProtocol
from pdctl.router.requests.ask import Ask
from pdctl.router.requests.body import Body
from pdctl.router.settings import Settings


class Pin(NamedTuple):
    """The engines that a request asks for by their URLs; mixed mode has no prefill."""

    prefill: str | None
    decode: str


class Choice(msgspec.Struct, frozen=True):
    """The engines for a request, and why there is no prefill engine among them, if that is not a matter of course."""

    pair: Pair
    skipped: bool = False  # too little of the prompt is left to compute
    fallback: str | None = None  # the protocol cannot do what the request wants with a pair


class SelectionError(Exception):
    """There are no engines for a request; answered with this status."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class EnginesFullError(Exception):
    """Every engine that could serve a request has as many as it may have: the request has to wait."""


class Selector:
    """Applies the policies to the registry's instances."""

    def __init__(self, registry: Registry, settings: Settings, index: PrefixIndex, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._index = index
        self._splitwise = settings.splitwise
        self._pd_min_tokens = settings.pd_min_tokens
        self._indexes = settings.pd_min_tokens > 0 or "cache_aware" in settings.policies
        self._most = settings.engine_requests
        self._prefill = make_policy(settings.prefill_policy, index)
        self._decode = make_policy(settings.decode_policy, index)
        self._mixed = make_policy(settings.mixed_policy, index)

    def choose(self, body: Body, ask: Ask, avoided: Container[str] = ()) -> Choice:
        """The engines for a request. EnginesFullError if it has to wait, SelectionError if there are none."""
        group = self._registry.group(body.model)
        if group is None:
            raise SelectionError(404, f"the model {body.model} is not served here", "model_not_found")
        if not self._splitwise:
            return Choice(group.pair(None, self._pick(self._mixed, group.mixed, ask, avoided, group)))
        if group.selective and (alone := _serving_alone(body, group.selective)):
            decode = self._pick(self._decode, list(alone), ask, avoided, group)
            return Choice(group.pair(None, decode), fallback=alone[decode])
        paired = group.paired
        if avoided:  # a prefill all of whose partners are avoided is of no use
            paired = [p for p in paired if any(d.key not in avoided for d in group.partners(p))]
        prefill = self._pick(self._prefill, paired, ask, avoided, group)
        decode = self._pick(self._decode, group.partners(prefill), ask, avoided, group)
        if self._pd_min_tokens and self._is_short(decode, ask):
            return Choice(group.pair(None, decode), skipped=True)
        return Choice(group.pair(prefill, decode))

    def pinned(self, body: Body, pin: Pin) -> Choice:
        """The engines that a request asks for, even if they are paused. SelectionError if they cannot serve it."""
        decode = self._find(pin.decode, "decode" if self._splitwise else "mixed")
        if not self._splitwise:
            return Choice(Pair(None, decode))
        prefill = self._find(pin.prefill or "", "prefill")
        reason = mismatch(prefill, decode)
        if reason is not None:
            raise SelectionError(400, reason, "no_pair")
        fallback = _serving_alone(body, [decode]).get(decode)
        return Choice(Pair(prefill if fallback is None else None, decode), fallback=fallback)

    def _pick(
        self, policy: Policy, candidates: Sequence[Instance], ask: Ask, avoided: Container[str], group: Group
    ) -> Instance:
        if avoided:
            candidates = [i for i in candidates if i.key not in avoided]
        if not candidates:
            raise self._nobody(group)
        chosen = policy.choose(candidates, ask)
        if chosen.load.requests < self._most:
            return chosen
        free = [i for i in candidates if i.load.requests < self._most]
        if not free:
            raise EnginesFullError
        return policy.choose(free, ask)

    def assigned(self, pair: Pair, ask: Ask) -> int:
        """Note what a pair's engines will hold; how much of the prompt the first is expected to hold already."""
        expected = 0
        if self._indexes:
            for engine in (pair.decode, pair.prefill):
                if engine is not None:
                    expected = ask.tokens - ask.uncached(self._index.matched(engine.key, ask.prefix))
                    self._metrics.cache_hit_tokens[engine.registration.role] += expected
                    self._index.assigned(engine.key, ask.prefix)
        return expected

    def _is_short(self, decode: Instance, ask: Ask) -> bool:
        if not decode.protocol.can_prefill(decode):
            return False
        left = ask.tokens
        if left >= self._pd_min_tokens:
            left = ask.uncached(self._index.matched(decode.key, ask.prefix))
        return left < self._pd_min_tokens

    def _nobody(self, group: Group) -> SelectionError:
        misfit = group.misfit()
        if misfit is not None:
            return SelectionError(400, misfit, "no_pair")
        reason = self._registry.missing_in(group) or "no other instance gets requests"
        return SelectionError(503, reason, "no_instance")

    def _find(self, url: str, role: str) -> Instance:
        instance = self._registry.instances.get(url.removeprefix("http://").rstrip("/"))
        if instance is None or not instance.live or instance.registration.role != role:
            raise SelectionError(400, f"there is no live {role} instance {url or '(none given)'}", "unknown_instance")
        return instance


def _serving_alone(body: Body, decodes: Sequence[Instance]) -> dict[Instance, str]:
    """The decodes that cannot share a request with a prefill, and can serve it without; each with the reason."""
    if body.is_single and not body.prompt_output:
        return {}
    reasons = {decode: _indivisible(body, decode.protocol) for decode in decodes if decode.protocol.can_prefill(decode)}
    return {decode: reason for decode, reason in reasons.items() if reason is not None}


def _indivisible(body: Body, protocol: PdProtocol) -> str | None:
    """Why a protocol's prefill and decode cannot share a request."""
    if body.prompt_output and not protocol.splits_prompt_output:
        return "prompt_logprobs"
    return None if protocol.splits_choices or body.is_single else "several_choices"
