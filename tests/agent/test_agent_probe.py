"""What a host says that it has."""

import os
import socket
import stat
from pathlib import Path

import psutil
import pytest

from pdctl.agent.probe import probe
from pdctl.planning.inventory import Inventory

SMI = """#!/bin/sh
cat <<END
0, GPU-aaa, NVIDIA H200, 143771, 12
1, GPU-bbb, NVIDIA GB10, [N/A], [N/A]
END
"""


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


def test_gpus_as_nvidia_smi_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = Inventory.model_validate(probe(tmp_path, [])).gpus
    assert (first.index, first.uuid, first.name) == (0, "GPU-aaa", "NVIDIA H200")
    assert (first.memory_total_mb, first.memory_used_mb) == (143771, 12)
    assert second.memory_total_mb == 0


def test_no_gpus_where_the_tool_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'driver not loaded' >&2; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert probe(tmp_path, [])["gpus"] == []
