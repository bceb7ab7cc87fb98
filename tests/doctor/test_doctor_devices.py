"""GPUs, their drivers, and RDMA NICs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_samples import make_facts, make_host, make_inventory, shown, two_hosts, worst

from pdctl.agent.sysfs_nics import read_nics
from pdctl.doctor.checks.gpus import check_drivers, check_gpus
from pdctl.doctor.checks.nics import check_fabric, check_memlock, check_nics
from pdctl.doctor.facts import HostFacts
from pdctl.planning.inventory import Gpu
from tests.agent.sysfs_trees import hgx_h100

PLACE = {"path": ["pci0000:10", "0000:11:00.0"]}


def gpu(index: int, used_mb: int = 0, *users: str) -> Gpu:
    return Gpu(index=index, uuid=f"G{index}", name="H200", memory_total_mb=141_000, memory_used_mb=used_mb, users=users)


def nic(device: str = "mlx5_0", **changes: Any) -> dict[str, Any]:
    fields = {"port": 1, "link_layer": "InfiniBand", "rate": "400 Gb/sec (4X NDR)", "netdev": "ibp1"}
    return {"device": device, **fields, **changes}


def with_nics(*nics: dict[str, Any], name: str = "a", address: str = "10.0.0.1", **system: Any) -> HostFacts:
    return make_host(name, address, inventory=make_inventory(address, nics=nics), **system)


def test_gpus_that_are_free_and_one_that_is_used():
    host = make_host(inventory=make_inventory(gpus=(gpu(0), gpu(1, 70_000, "pid 77 (python)"), gpu(2, 9_000))))
    assert shown(check_gpus(make_facts(host, engine="vllm", planned=False))) == [
        "ok a: 1 of 3 free: H200",
        "warning a: GPU 1 (H200): 70000 MB in use by pid 77 (python)",
        "warning a: GPU 2 (H200): 9000 MB in use by what cannot be seen from here: another container's, or left by a"
        " killed process",
    ]


def test_a_used_gpu_that_an_engine_is_to_have():
    host = make_host(inventory=make_inventory(gpus=(gpu(0), gpu(1, 70_000, "pid 77 (python)")), engine_version="0.32"))
    roles = {"prefill": [{"host": "a", "gpus": [0]}], "decode": [{"host": "a", "gpus": [1]}]}
    used = worst(check_gpus(make_facts(host, engine="vllm", topology=roles)))
    assert used[0].text.endswith("in use by pid 77 (python); it is for decode-0")
    assert used[0].remedy == "ps -fp 77, and `kill` what should not be there"


@pytest.mark.parametrize(
    ("engine", "inventory", "finding"),
    [
        ("vllm", {"gpu_problem": "nvidia-smi failed: no driver"}, "error a: nvidia-smi failed: no driver"),
        ("builtin", {"gpu_problem": "nvidia-smi failed: no driver"}, "warning a: nvidia-smi failed: no driver"),
        (
            "vllm",
            {"gpu_places": [PLACE]},
            "error a: 1 GPU on its PCI bus, but no nvidia-smi: the driver is not installed",
        ),
    ],
)
def test_gpus_of_which_nothing_is_known(engine: str, inventory: dict[str, Any], finding: str):
    host = make_host(inventory=make_inventory(**inventory))
    assert shown(check_gpus(make_facts(host, engine=engine, planned=False))) == [finding]


def test_a_driver_whose_libraries_are_others_wants_a_reboot():
    host = make_host(inventory=make_inventory(gpu_problem="nvidia-smi failed: Driver/library version mismatch"))
    assert [finding.remedy for finding in check_gpus(make_facts(host))] == ["sudo reboot"]


def test_drivers_that_differ():
    assert shown(check_drivers(make_facts(*two_hosts(driver="550.54.15")))) == [
        "ok a: NVIDIA 570.86.15",
        "ok b: NVIDIA 550.54.15",
        "warning : the hosts have different ones: 570.86.15 on a, 550.54.15 on b",
    ]
    assert not worst(check_drivers(make_facts(*two_hosts(driver=None))))


def test_the_nics_of_a_real_machine_are_all_right(tmp_path: Path):
    """Ports without a cable, a slow one, virtual functions: nobody has to do anything about these."""
    tree = hgx_h100(tmp_path)
    host = with_nics(*read_nics(tree.sys, tree.dev))
    assert shown(check_nics(make_facts(host))) == [
        "ok a: mlx5_0:1, mlx5_3:1, mlx5_4:1, mlx5_5:1, mlx5_6:1, mlx5_9:1, mlx5_10:1, mlx5_11:1: 400 Gb/s InfiniBand"
    ]


@pytest.mark.parametrize(
    ("changes", "text", "remedy"),
    [
        ({"state": "INIT"}, "is INIT (LinkUp)", "subnet manager"),
        ({"can_open": False}, "cannot be opened", "--device=/dev/infiniband"),
        ({"link_layer": "Ethernet"}, "has no RoCE v2 GID", "sudo ip addr add ADDRESS/PREFIX dev ibp1"),
        ({"state": "DOWN"}, "is DOWN (LinkUp)", "sudo ip link set ibp1 up"),
    ],
)
def test_a_nic_that_can_be_mended(changes: dict[str, Any], text: str, remedy: str):
    findings = worst(check_nics(make_facts(with_nics(nic(), nic("mlx5_1", **changes)))))
    assert [finding.level for finding in findings] == ["warning"]
    assert f"mlx5_1:1 {text}" in findings[0].text
    assert remedy in findings[0].remedy


def test_no_nic_that_can_be_used():
    down = nic(state="DOWN", phys_state="Polling")
    assert shown(check_nics(make_facts(with_nics(down)))) == [
        "warning a: none can be used, KV goes by TCP: mlx5_0:1 is DOWN (Polling)"
    ]
    assert shown(check_nics(make_facts(make_host()))) == ["ok a: no RDMA devices: KV between hosts goes by TCP"]


def test_a_nic_that_an_engine_is_told_to_use_and_is_not_there():
    group = {"host": "a", "env": {"KVCACHE_RDMA_NICS": "mlx5_0,mlx5_9"}}
    facts = make_facts(with_nics(nic()), topology={"prefill": [group]})
    assert shown(iter(worst(check_nics(facts)))) == [
        "error a: prefill-0 is told to use mlx5_9: there is no such device"
    ]


def test_hosts_whose_nics_do_not_reach_each_other():
    roce = {"link_layer": "Ethernet", "gids": [{"index": 3, "gid": "0::ffff:0a00:0001", "type": "RoCE v2"}]}
    ethernet = with_nics(nic(**roce), name="b", address="10.0.0.2")
    text = "the hosts have different kinds: InfiniBand on a, {} on b: KV between these goes by TCP"
    assert [one.text for one in check_fabric(make_facts(with_nics(nic()), ethernet))] == [text.format("Ethernet")]
    assert [one.text for one in check_fabric(make_facts(with_nics(nic()), two_hosts()[1]))] == [text.format("none")]
    assert not list(check_fabric(make_facts(with_nics(nic()), with_nics(nic(), name="b", address="10.0.0.2"))))


def test_memory_that_nics_cannot_lock():
    limited = make_facts(with_nics(nic(), memlock=8 << 20))
    assert shown(check_memlock(limited)) == [
        "warning a: a process may lock 8 MiB: NICs cannot use a larger KV pool",
    ]
    assert shown(check_memlock(replace(limited, plan=None)))[0].startswith("warning a")
    assert shown(check_memlock(make_facts(with_nics(nic())))) == ["ok a: unlimited"]
    assert not list(check_memlock(make_facts(make_host(memlock=8 << 20))))  # no NIC is used
