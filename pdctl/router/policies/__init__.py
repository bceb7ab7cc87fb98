"""Which of several engines gets a request: one file per policy, found by its name.

A policy's file defines `create(index: PrefixIndex) -> Policy`; another such file is another policy. Policies read
`instance.load`, which counts a request from the moment it is assigned.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that the names can be had without the router
    from pdctl.router.engines.prefix_index import PrefixIndex
    from pdctl.router.policies.base import Policy

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def make_policy(name: str, index: "PrefixIndex") -> "Policy":
    """A new policy, one of NAMES. Only its module is imported."""
    policy: Policy = importlib.import_module(f"{__name__}.{name}").create(index)
    return policy
