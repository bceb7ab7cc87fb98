"""The topology file that `pdctl init` writes."""

from pathlib import Path

import pytest
from inventories import make_inventory

from pdctl.planning.inventory import Inventory
from pdctl.planning.planner import make_plan
from pdctl.planning.starter import write_starter
from pdctl.profiles import load_profile
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Host, Topology


def written(folder: Path, inventory: Inventory, *, gpus: str = "none", name: str = "chat") -> Topology:
    profile = load_profile("builtin").model_copy(update={"gpus": gpus})
    path = folder / "chat.yaml"
    path.write_text(write_starter("chat.yaml", name, profile, inventory))
    topology = load_topology(path)
    make_plan(topology, profile, {"here": inventory})
    return topology


def test_without_gpus_it_is_the_default_deployment(tmp_path: Path):
    assert written(tmp_path, make_inventory(), name="default").model_dump() == (
        load_topology(None).model_dump() | {"hosts": {"here": Host().model_dump()}}
    )


@pytest.mark.parametrize(
    ("count", "prefill", "decode"), [(1, None, None), (2, [0], [1]), (3, [0], [1, 2]), (8, [0, 1, 2, 3], [4, 5, 6, 7])]
)
def test_gpus_are_shared(tmp_path: Path, count: int, prefill: list[int] | None, decode: list[int] | None):
    topology = written(tmp_path, make_inventory(gpus=count), gpus="optional")
    assert (topology.prefill[0].gpus, topology.decode[0].gpus) == (prefill, decode)
    assert topology.prefill[0].replicas == len(prefill or [0])


def test_the_router_gets_a_port_that_is_free(tmp_path: Path):
    taken = {8000: "pid 1 (nginx)", 8001: "pid 2 (nginx)"}
    assert written(tmp_path, make_inventory(taken_ports=taken)).router.port == 8002


def test_gpus_in_use_are_left_to_their_users(tmp_path: Path):
    host = make_inventory(gpus=3)
    busy = host.gpus[1].model_copy(update={"memory_used_mb": 40000})
    host = host.model_copy(update={"gpus": (host.gpus[0], busy, host.gpus[2])})
    topology = written(tmp_path, host, gpus="optional")
    assert (topology.prefill[0].gpus, topology.decode[0].gpus) == ([0], [2])


def test_why_gpus_are_not_known_is_written(tmp_path: Path):
    written(tmp_path, make_inventory().model_copy(update={"gpu_problem": "nvidia-smi failed: no driver"}))
    assert "GPUs: nvidia-smi failed: no driver.\n" in (tmp_path / "chat.yaml").read_text()


@pytest.mark.parametrize("name", ["12", "true", "1.5", "null", "a" * 63])
def test_any_safe_name(tmp_path: Path, name: str):
    assert written(tmp_path, make_inventory(), name=name).name == name
