"""The difference between two plans, and its words."""

from pathlib import Path
from typing import Any

import pytest
from inventories import inventory_of, make_inventory

from pdctl.errors import PlanError
from pdctl.planning.change_text import describe
from pdctl.planning.changes import difference, refuse_another_deployment, replacing
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan
from pdctl.profiles import load_profile
from pdctl.topology.models import Topology
from tests.agent.sysfs_trees import hgx_h100, roce_server

HOSTS = {"here": {}, "a": {"ssh": "a"}, "b": {"ssh": "b"}}


def plan_of(current: Plan | None = None, engine: str = "builtin", **sections: Any) -> Plan:
    topology = Topology.model_validate(
        {"engine": engine, "model": "M", "prefill": 1, "decode": 1, "hosts": HOSTS} | sections
    )
    hosts = {name: make_inventory(gpus=8, address=f"10.0.0.{n}") for n, name in enumerate(topology.hosts, 1)}
    return make_plan(topology, load_profile(engine), hosts, current)


def lines_of(current: Plan, **sections: Any) -> list[str]:
    return list(describe(difference(current, plan_of(current, current.engine, **sections))))


def test_a_plan_beside_itself():
    plan = plan_of(prefill=2)
    change = difference(plan, plan)
    assert not change.changes_processes
    assert [engine.name for engine in change.kept] == ["prefill-0", "prefill-1", "decode-0"]
    assert list(describe(change)) == []


def test_what_is_said_of_a_change():
    current = plan_of(prefill=2, decode={"args": {"max-num-seqs": 4}, "env": {"A": "1", "HF_TOKEN": "x"}})
    assert lines_of(current, decode=[{"args": {"max-num-seqs": 8}, "env": {"A": "2", "HF_TOKEN": "y"}}, {}]) == [
        "+ decode-1 on here",
        "- prefill-1 on here",
        "~ decode-0: --max-num-seqs 4 -> 8; A= 1 -> 2; HF_TOKEN= *** -> ***",
    ]


def test_the_router_is_replaced_where_it_is_told_of_the_engines():
    current = plan_of(engine="vllm")
    added, router, because = lines_of(current, prefill=2)
    assert added == "+ prefill-1 on here, GPU 2"
    assert router == ("~ router: --prefill http://127.0.0.1:20000 -> http://127.0.0.1:20000 http://127.0.0.1:20004")
    refused = "  while the router is started again, new requests are refused"
    assert because == f"{refused}; it has to be, as it is told at its start which engines there are"
    assert lines_of(plan_of(), router={"workers": 2}) == ["~ router: --workers 1 -> 2", refused]


def test_an_engine_on_several_hosts_is_one():
    wide = {"hosts": ["a", "b"], "tp": 2}
    current = plan_of(engine="vllm", prefill=wide)
    change = replacing(current, ["prefill-0-node1", "router"])
    assert [(one.name, len(one.new.processes)) for one in change.replaced] == [("prefill-0", 2)]
    assert change.router
    assert list(describe(change))[:2] == ["~ prefill-0: started again as it is", "~ router: started again as it is"]
    added = lines_of(current, prefill=[wide, wide])
    assert added[0] == "+ prefill-1 on a and b, GPU 1 of each"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model": "N"},
            "model: 'M' runs, and 'N' is wanted: that is no change that can be made while it serves; end it",
        ),
        ({"engine": "vllm"}, "engine: 'builtin' runs, and 'vllm' is wanted"),
        ({"router": {"port": 9000}}, "router: '127.0.0.1:8000' runs, and '127.0.0.1:9000' is wanted"),
        ({"decode": {"host": "a"}}, "router: '127.0.0.1:8000' runs, and '10.0.0.1:8000' is wanted"),
        (
            {"router": {"host": "a"}, "hosts": HOSTS | {"a": {"ssh": "a", "python": "/py"}}},
            "router.host: 'here' runs, and 'a' is wanted",
        ),
    ],
)
def test_what_is_another_deployment(sections: dict[str, Any], said: str):
    current = plan_of()
    wanted = plan_of(current, **({"engine": "builtin"} | sections))
    with pytest.raises(PlanError) as caught:
        refuse_another_deployment(difference(current, wanted))
    assert str(caught.value).startswith(said)
    assert "`pdctl down --name default` first, or give the other a `name` of its own" in str(caught.value)


def gpus_of(host: Inventory, **sections: Any) -> list[tuple[int, ...]]:
    topology = Topology.model_validate({"engine": "vllm", "model": "M", "prefill": 1, "decode": 1} | sections)
    return [engine.gpus for engine in make_plan(topology, load_profile("vllm"), {"here": host}).engines]


def test_gpus_with_a_nic_nearby_come_first(tmp_path: Path):
    host = inventory_of(hgx_h100(tmp_path))
    far = host.gpu_places[0].model_copy(update={"path": ("pci9999:00", "9999:00:00.0")})
    moved = host.gpus[0].model_copy(update={"pci": far.address})
    host = host.model_copy(update={"gpu_places": (far, *host.gpu_places[1:]), "gpus": (moved, *host.gpus[1:])})
    assert gpus_of(host) == [(1,), (2,)]
    assert gpus_of(host, prefill={"tp": 2}, decode={"tp": 6}) == [(1, 2), (0, 3, 4, 5, 6, 7)]


def test_engines_spread_over_the_nics(tmp_path: Path):
    """Each two GPUs share one here."""
    host = inventory_of(roce_server(tmp_path))
    assert gpus_of(host, decode=3) == [(0,), (2,), (1,), (3,)]
    assert gpus_of(host, prefill={"tp": 2}, decode={"tp": 2}) == [(0, 1), (2, 3)]
