"""`pdctl nics` on machines of several kinds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pdctl.agent.probe import probe
from pdctl.cli.main import app
from pdctl.errors import ExitCode
from pdctl.hosts.host import Host
from tests.agent.sysfs_trees import SysfsTree, hgx_h100, plain_vm

Run = Callable[..., Any]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`pdctl nics` on a machine of that kind."""
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.delenv("KVCACHE_RDMA_NICS", raising=False)

    def run(machine: Callable[[Path], SysfsTree], *arguments: str) -> Any:
        tree = machine(tmp_path / "machine")

        async def probe_tree(self: Host, folder: Path, ports: list[int]) -> dict[str, Any]:
            return probe(folder, ports, sysfs=tree.sys, dev=tree.dev)

        monkeypatch.setattr(Host, "probe", probe_tree)
        return CliRunner().invoke(app, ["nics", *arguments])

    return run


def row(output: str, name: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(f"{name} "))


def test_the_table_says_what_is_used_and_why_the_rest_is_not(run: Run):
    done = run(hgx_h100)
    assert done.exit_code == 0
    assert row(done.output, "mlx5_3:1").split() == [
        *("mlx5_3:1", "ACTIVE", "400", "Gb/sec", "(4X", "NDR)", "InfiniBand", "ibp60s0", "0", "0000:3c:00.0"),
        *("lid", "12,", "gid", "0", "fe80::a088:c203:ab:3c"),
    ]
    assert row(done.output, "mlx5_1:1").rstrip().endswith("is Ethernet: this host has more bandwidth on InfiniBand")
    assert "gid 3 10.0.0.5 " in row(done.output, "mlx5_1:1")
    assert row(done.output, "mlx5_2:1").rstrip().endswith("is DOWN (Disabled)")
    assert "-    0     0000:3f:00.0  mlx5_3:1      same switch" in done.output


def test_the_members_of_a_bond_are_shown(run: Run):
    def machine(folder: Path) -> SysfsTree:
        tree = SysfsTree(folder)
        tree.nic("mlx5_bond_0", "pci0000:10", "0000:10:01.0", "0000:11:00.0", netdev="ens1f0np0", link_layer="Ethernet")
        tree.bond("bond0", "ens1f0np0")
        return tree

    assert "bond0 (ens1f0np0)" in row(run(machine).output, "mlx5_bond_0:1")


def test_everything_as_json(run: Run):
    data = json.loads(run(hgx_h100, "--json").stdout)
    by_device = {nic["device"]: nic for nic in data["nics"]}
    assert by_device["mlx5_2"]["left_out"] == "is DOWN (Disabled)"
    assert by_device["mlx5_3"]["left_out"] is None
    assert by_device["mlx5_1"]["gid"]["index"] == 3
    assert by_device["mlx5_3"]["place"]["numa_node"] == 0
    assert data["gpus"][1] == {
        "gpu": None,
        "place": {
            "path": ["pci0000:37", "0000:37:01.0", "0000:38:00.0", "0000:39:01.0", "0000:3f:00.0"],
            "numa_node": 0,
        },
        "distance": "same switch",
        "nics": [{"device": "mlx5_3", "port": 1}],
    }
    assert (data["host"], data["nics_in_environment"], data["gpu_problem"]) == ("local", None, None)


def test_what_a_shell_exports(run: Run):
    listed = "mlx5_0,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_9,mlx5_10,mlx5_11"
    assert run(hgx_h100, "--export", "gpu").output == f"KVCACHE_RDMA_NICS={listed}\n"


def test_what_a_process_without_gpu_exports(run: Run):
    def machine(folder: Path) -> SysfsTree:
        tree = SysfsTree(folder)
        tree.nic("mlx5_0", "pci0000:10", "0000:10:01.0", "0000:11:00.0")
        return tree

    assert run(machine, "--export", "cpu").output == "KVCACHE_RDMA_NICS=mlx5_0\n"


def test_nothing_is_exported_where_there_is_no_gpu(run: Run):
    done = run(SysfsTree, "--export", "gpu")
    assert (done.exit_code, done.stdout) == (ExitCode.PLAN, "")
    assert done.stderr == "error: host local: no GPU was found: use --export cpu\n"


def test_nothing_is_exported_where_no_nic_can_be_used(run: Run):
    done = run(plain_vm, "--export", "gpu")
    assert (done.exit_code, done.stdout) == (ExitCode.PLAN, "")
    assert done.stderr == "error: host local: no RDMA NIC can be used\n  there is none\n"


def test_why_no_nic_can_be_used(run: Run):
    def machine(folder: Path) -> SysfsTree:
        tree = SysfsTree(folder)
        tree.nic("mlx5_0", "pci0000:10", "0000:10:01.0", "0000:11:00.0", state="1: DOWN", phys_state="2: Polling")
        return tree

    assert run(machine, "--export", "cpu").stderr == (
        "error: host local: no RDMA NIC can be used\n  mlx5_0:1 is DOWN (Polling)\n"
    )


def test_a_machine_without_rdma(run: Run):
    done = run(plain_vm)
    assert (done.exit_code, done.output) == (0, "No RDMA devices.\n")


def test_the_environment_is_shown_where_it_decides(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "mlx5_9")
    assert "\nKVCACHE_RDMA_NICS=mlx5_9 is set here: engines get that instead.\n" in run(hgx_h100).output


@pytest.mark.parametrize(("arguments", "name"), [(["--host", "here"], "here"), ([], "local")])
def test_a_host_of_a_topology(run: Run, arguments: list[str], name: str):
    done = run(plain_vm, str(EXAMPLES / "two-hosts.yaml"), *arguments, "--json")
    assert json.loads(done.stdout)["host"] == name


def test_a_host_that_is_not_known(run: Run):
    done = run(plain_vm, str(EXAMPLES / "two-hosts.yaml"), "--host", "secnd")
    assert done.exit_code == ExitCode.USAGE
    assert "--host: unknown host 'secnd', did you mean 'second'?" in done.stderr


def test_json_or_lines_for_a_shell(run: Run):
    assert run(plain_vm, "--json", "--export", "gpu").exit_code == ExitCode.USAGE
