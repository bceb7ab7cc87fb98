"""Which NICs GPUs and engines use."""

from pathlib import Path

import pytest
from inventories import inventory_of, make_inventory

from pdctl.planning.inventory import Inventory, Nic
from pdctl.planning.nics import device_names, engine_nics, nics_by_gpu, nics_of_all_gpus
from tests.agent.sysfs_trees import NDR, SysfsTree, cloud_vm, hgx_h100, plain_vm, roce_server, soft_roce_vm


def found(inventory: Inventory) -> list[tuple[int | None, str, str]]:
    return [(one.gpu, " ".join(device_names(one.nics)), str(one.distance)) for one in nics_by_gpu(inventory)]


def devices(inventory: Inventory, *gpus: int, asked: str | None = None) -> str:
    return " ".join(engine_nics(inventory, gpus, asked).devices)


def test_each_gpu_has_the_nic_at_its_switch(tmp_path: Path):
    numbers = (0, 3, 4, 5, 6, 9, 10, 11)
    host = inventory_of(hgx_h100(tmp_path))
    assert found(host) == [(gpu, f"mlx5_{number}", "same switch") for gpu, number in enumerate(numbers)]
    assert device_names(nics_of_all_gpus(host)) == tuple(f"mlx5_{number}" for number in numbers)


def test_gpus_that_nvidia_smi_does_not_tell_of(tmp_path: Path):
    host = inventory_of(hgx_h100(tmp_path), nvidia_smi=False)
    assert found(host)[1] == (None, "mlx5_3", "same switch")
    assert len(found(host)) == 8


def test_only_gpus_that_nvidia_smi_tells_of(tmp_path: Path):
    """A container has few of the host's, and numbers them itself."""
    host = inventory_of(hgx_h100(tmp_path))
    host = host.model_copy(update={"gpus": (host.gpus[5].model_copy(update={"index": 0}),)})
    assert found(host) == [(0, "mlx5_9", "same switch")]


def test_a_nic_that_is_down_is_replaced_by_those_of_its_node(tmp_path: Path):
    tree = hgx_h100(tmp_path)
    (tree.sys / "class/infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    assert found(inventory_of(tree))[0] == (0, "mlx5_3 mlx5_4 mlx5_5", "same NUMA node")


def test_a_slow_nic_of_the_same_node_is_not_used(tmp_path: Path):
    host = inventory_of(roce_server(tmp_path))
    assert found(host) == [(gpu, f"mlx5_{gpu // 2}", "same NUMA node") for gpu in range(4)]


def test_gpus_that_share_nics_begin_with_different_ones(tmp_path: Path):
    host = inventory_of(cloud_vm(tmp_path))
    assert [nics for _, nics, _ in found(host)] == [
        "mlx5_ib0 mlx5_ib1",
        "mlx5_ib1 mlx5_ib0",
        "mlx5_ib2 mlx5_ib3",
        "mlx5_ib3 mlx5_ib2",
    ]


def test_a_gpu_whose_place_is_not_known_has_all_nics(tmp_path: Path):
    host = inventory_of(hgx_h100(tmp_path))
    host = host.model_copy(update={"gpus": (host.gpus[0].model_copy(update={"pci": None}),)})
    assert found(host) == [(0, "mlx5_0 mlx5_3 mlx5_4 mlx5_5 mlx5_6 mlx5_9 mlx5_10 mlx5_11", "other")]


def test_a_machine_without_nics(tmp_path: Path):
    host = inventory_of(plain_vm(tmp_path))
    assert found(host) == [(0, "", "other")]
    assert engine_nics(host, (0,), None) == engine_nics(host, (), None) == ("", (), "")


def test_an_engine_has_the_nics_of_its_gpus_rank_by_rank(tmp_path: Path):
    host = inventory_of(hgx_h100(tmp_path))
    assert engine_nics(host, (5, 1), None) == ("mlx5_9,mlx5_3", ("mlx5_9", "mlx5_3"), "mlx5_9:1,mlx5_3:1")


def test_the_first_choices_of_all_ranks_come_first(tmp_path: Path):
    host = inventory_of(cloud_vm(tmp_path))
    assert devices(host, 1) == "mlx5_ib1 mlx5_ib0"
    assert devices(host, 0, 1) == "mlx5_ib0 mlx5_ib1"
    assert devices(host, 0, 3) == "mlx5_ib0 mlx5_ib3 mlx5_ib1 mlx5_ib2"


def test_an_engine_without_gpus_has_all_that_can_be_used(tmp_path: Path):
    assert devices(inventory_of(roce_server(tmp_path))) == "mlx5_0 mlx5_1 rocep3s0f0"


def test_soft_roce_is_used_where_it_is_all_there_is(tmp_path: Path):
    assert engine_nics(inventory_of(soft_roce_vm(tmp_path)), (), None).ucx == "rxe0:1"


def test_the_ports_of_a_device_are_told_to_ucx_and_the_device_once(tmp_path: Path):
    tree = SysfsTree(tmp_path)
    tree.nic("mlx4_0", "pci0000:10", "0000:10:01.0", "0000:11:00.0")
    tree.port("mlx4_0", 2)
    assert engine_nics(inventory_of(tree), (), None) == ("mlx4_0", ("mlx4_0",), "mlx4_0:1,mlx4_0:2")


@pytest.mark.parametrize(
    ("asked", "environment", "text", "ucx"),
    [
        ("mlx5_4, mlx5_5", None, "mlx5_4, mlx5_5", "mlx5_4:1,mlx5_5:1"),
        ("mlx5_4", "mlx5_5", "mlx5_4", "mlx5_4:1"),
        (None, "mlx5_5", "mlx5_5", "mlx5_5:1"),
        (None, "mine_0", "mine_0", "mine_0:1"),
        ("", "mlx5_5", "", ""),
    ],
)
def test_what_the_user_says_counts(tmp_path: Path, asked: str | None, environment: str | None, text: str, ucx: str):
    host = inventory_of(hgx_h100(tmp_path)).model_copy(update={"nics_in_environment": environment})
    for gpus in ((), (0,)):
        told = engine_nics(host, gpus, asked)
        assert (told.text, told.ucx) == (text, ucx)


def test_a_device_that_is_asked_for_is_used_at_its_port_that_works():
    ports = [Nic(device="a", port=1, state="DOWN", rate=NDR, link_layer="InfiniBand")]
    ports += [Nic(device="a", port=port, rate=NDR, link_layer="InfiniBand") for port in (2, 3)]
    host = make_inventory().model_copy(update={"nics": tuple(ports)})
    assert engine_nics(host, (), "a").ucx == "a:2"
