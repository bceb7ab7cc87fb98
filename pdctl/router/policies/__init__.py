"""Which of several engines gets a request: one file per policy."""

from pdctl.router.policies.base import Policy
from pdctl.router.policies.process_tokens import ProcessTokens
from pdctl.router.policies.random import Random
from pdctl.router.policies.request_num import RequestNum
from pdctl.router.policies.round_robin import RoundRobin

POLICIES: dict[str, type[Policy]] = {
    "process_tokens": ProcessTokens,
    "random": Random,
    "request_num": RequestNum,
    "round_robin": RoundRobin,
}

__all__ = ["POLICIES", "Policy"]
