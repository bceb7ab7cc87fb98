"""What a host says that it has."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pdctl.agent import probe as probe_module
from pdctl.agent.probe import probe
from pdctl.planning.inventory import Inventory
from tests.agent.sysfs_trees import hgx_h100

SMI = """#!/bin/sh
case "$1" in
--query-gpu=*)
    echo "0, GPU-aaa, NVIDIA H200, 143771, 12, 00000000:1D:00.0"
    echo "1, GPU-bbb, NVIDIA GB10, [N/A], [N/A], [N/A]";;
*)
    echo "GPU-aaa, 77, /usr/bin/python3, with a comma"
    echo "GPU-aaa, 78, [Not Found]";;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the tool's place."""

    def install(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_the_inventory_is_what_the_planner_reads(tmp_path: Path) -> None:
    inventory = Inventory.model_validate(probe(tmp_path / "not" / "yet", []))
    assert inventory.cpus == len(os.sched_getaffinity(0))
    assert inventory.memory_bytes == psutil.virtual_memory().total
    assert inventory.free_disk_bytes > 0
    assert inventory.hostname == socket.gethostname()
    assert Path(inventory.python).exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_taken_port_has_its_holder(tmp_path: Path, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as taken, socket.socket() as free:
        taken.bind((address, 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        port, free_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        assert probe(tmp_path, [port, free_port])["taken_ports"] == {
            port: f"pid {os.getpid()} ({psutil.Process().name()})"
        }


def test_a_file_that_is_closed_meanwhile_hides_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readlink = Path.readlink

    def vanishing(path: Path) -> Path:
        target = readlink(path)
        if not str(target).startswith("socket:"):
            raise FileNotFoundError
        return target

    monkeypatch.setattr(Path, "readlink", vanishing)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"pid {os.getpid()} (" in probe(tmp_path, [port])["taken_ports"][port]


def test_gpus_as_nvidia_smi_tells_them(tmp_path: Path, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(SMI)
    first, second = Inventory.model_validate(probe(tmp_path, [])).gpus
    assert (first.index, first.uuid, first.name) == (0, "GPU-aaa", "NVIDIA H200")
    assert (first.memory_total_mb, first.memory_used_mb) == (143771, 12)
    assert second.memory_total_mb == 0
    assert (first.pci, second.pci) == ("0000:1d:00.0", None)
    assert first.users == ("pid 77 (python3, with a comma)", "pid 78 ([Not Found])")
    assert second.users == ()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'driver not loaded' >&2; exit 9", "nvidia-smi failed: driver not loaded"),
        ("exit 9", "nvidia-smi failed: exit code 9"),
        ("echo No devices were found", "nvidia-smi wrote what is not understood: 'No devices were found'"),
        ("echo x, GPU-a, H200, 1, 1", "nvidia-smi wrote what is not understood: 'x, GPU-a, H200, 1, 1'"),
        ("exec sleep 1000", "nvidia-smi did not answer in 0.5 s"),
    ],
)
def test_a_tool_that_fails_is_no_gpu_and_a_reason(
    tmp_path: Path, nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    monkeypatch.setattr(probe_module, "NVIDIA_SMI_TIMEOUT_S", 0.5)
    nvidia_smi(f"#!/bin/sh\n{script}\n")
    inventory = Inventory.model_validate(probe(tmp_path, []))
    assert (inventory.gpus, inventory.gpu_problem) == ((), problem)


def test_gpus_whose_users_are_not_told(tmp_path: Path, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("#!/bin/sh\ncase $1 in --query-gpu*) echo 0, GPU-a, H200, 9, 9, 00000000:00:06.0;; *) exit 1;; esac\n")
    (gpu,) = Inventory.model_validate(probe(tmp_path, [])).gpus
    assert (gpu.memory_used_mb, gpu.users) == (9, ())


def test_nics_and_where_the_gpus_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = hgx_h100(tmp_path)
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "mlx5_3")
    inventory = Inventory.model_validate(probe(tmp_path, [], sysfs=tree.sys, dev=tree.dev))
    assert (len(inventory.nics), inventory.nics_in_environment) == (12, "mlx5_3")
    assert inventory.gpu_places[0].path == (
        *("pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:17:01.0", "0000:1d:00.0"),
    )
