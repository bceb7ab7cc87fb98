"""Plans of deployments with engines of others."""

from typing import Any

import pytest
from inventories import make_inventory

from pdctl.errors import PlanError
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan
from pdctl.profiles import load_profile
from pdctl.topology.models import Topology

FOUR_HOSTS: dict[str, Any] = {name: {"ssh": name} for name in "abcd"}


def topology_of(engine: str, **sections: Any) -> Topology:
    return Topology.model_validate({"engine": engine, "model": "M", "prefill": 1, "decode": 1} | sections)


def plan_of(engine: str, inventory: dict[str, Any] | None = None, **sections: Any) -> Plan:
    topology = topology_of(engine, **sections)
    hosts = {
        name: make_inventory(gpus=8, address=f"10.0.0.{number}").model_copy(update=inventory or {})
        for number, name in enumerate(topology.hosts, 1)
    }
    return make_plan(topology, load_profile(engine), hosts)


def refusal(engine: str, inventory: dict[str, Any] | None = None, **sections: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(engine, inventory, **sections)
    return str(caught.value)


def options(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[index + 1] for index, token in enumerate(argv) if token == flag]
