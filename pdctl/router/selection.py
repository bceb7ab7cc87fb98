"""Chooses the engines of a request."""

from typing import NamedTuple

from pdctl.router.instance import Instance
from pdctl.router.pairs import Pair, mismatch
from pdctl.router.policies import POLICIES
from pdctl.router.registry import Registry
from pdctl.router.settings import Settings


class Pin(NamedTuple):
    """The engines that a request asks for by their URLs; mixed mode has no prefill."""

    prefill: str | None
    decode: str


class SelectionError(Exception):
    """There are no engines for a request; answered with this status."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Selector:
    """Applies the policies to the registry's instances."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._splitwise = settings.splitwise
        self._prefill = POLICIES[settings.prefill_policy]()
        self._decode = POLICIES[settings.decode_policy]()
        self._mixed = POLICIES[settings.mixed_policy]()

    def choose(self, pin: Pin | None = None) -> Pair:
        """The engines for the next request. SelectionError says why there are none."""
        registry = self._registry
        if pin is not None:
            return self._pinned(pin)
        if self._splitwise and registry.paired:
            prefill = self._prefill.choose(registry.paired)
            return registry.pair(prefill, self._decode.choose(registry.partners(prefill)))
        if not self._splitwise and registry.mixed:
            return registry.pair(None, self._mixed.choose(registry.mixed))
        raise self._nobody()

    def _nobody(self) -> SelectionError:
        misfit = self._registry.misfit()
        if misfit is not None:
            return SelectionError(400, misfit, "no_pair")
        return SelectionError(503, self._registry.missing() or "no instance gets requests", "no_instance")

    def _pinned(self, pin: Pin) -> Pair:
        decode = self._find(pin.decode, "decode" if self._splitwise else "mixed")
        if not self._splitwise:
            return self._registry.pair(None, decode)
        prefill = self._find(pin.prefill or "", "prefill")
        reason = mismatch(prefill, decode)
        if reason is not None:
            raise SelectionError(400, reason, "no_pair")
        return self._registry.pair(prefill, decode)

    def _find(self, url: str, role: str) -> Instance:
        instance = self._registry.instances.get(url.removeprefix("http://").rstrip("/"))
        if instance is None or not instance.live or instance.registration.role != role:
            raise SelectionError(400, f"there is no live {role} instance {url or '(none given)'}", "unknown_instance")
        return instance
