"""What an engine is told of NICs and ports."""

from pathlib import Path
from typing import Any

import pytest
from inventories import inventory_of, make_inventory

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import ProcessPlan
from pdctl.planning.planner import make_plan
from pdctl.profiles import Profile, load_profile
from pdctl.topology.models import Topology
from tests.agent.sysfs_trees import cloud_vm, hgx_h100


def engines_of(profile: Profile, host: Inventory, **sections: Any) -> tuple[ProcessPlan, ...]:
    topology = Topology.model_validate({"prefill": 1, "decode": 1} | sections)
    return make_plan(topology, profile, {"here": host}).engines


def profile_of(args: list[Any] = [], env: dict[str, str] = {}, **ports: Any) -> Profile:  # noqa: B006
    role = {"args": args, "env": env, "ports": {"api": "reported", **ports}}
    return Profile.model_validate(
        {
            "name": "other",
            "description": "uses GPUs",
            "protocol": "builtin",
            "registers": "with token",
            "gpus": "required",
            "command": ["run"],
            "roles": {"prefill": role, "decode": role},
        }
    )


def test_the_builtin_engine_is_told_of_the_nics_of_its_host(tmp_path: Path):
    prefill, decode = engines_of(load_profile("builtin"), inventory_of(cloud_vm(tmp_path)))
    for engine in (prefill, decode):
        assert engine.env["KVCACHE_RDMA_NICS"] == "mlx5_ib0,mlx5_ib1,mlx5_ib2,mlx5_ib3"
        assert engine.nics == ("mlx5_ib0", "mlx5_ib1", "mlx5_ib2", "mlx5_ib3")


def test_without_nics_nothing_is_said_of_them():
    for engine in engines_of(load_profile("builtin"), make_inventory()):
        assert (set(engine.env), engine.nics) == ({"OMP_NUM_THREADS"}, ())


def test_each_engine_has_the_nics_of_its_gpus(tmp_path: Path):
    profile = profile_of(
        args=["--x", ["--disaggregation-ib-device", "{nics}"], "--y"], env={"UCX_NET_DEVICES": "{ucx_net_devices}"}
    )
    host = inventory_of(hgx_h100(tmp_path))
    prefill, decode = engines_of(profile, host, prefill={"tp": 2}, decode={"gpus": [7]})
    assert prefill.argv == ("run", "--x", "--disaggregation-ib-device", "mlx5_0,mlx5_3", "--y")
    assert prefill.env == {"UCX_NET_DEVICES": "mlx5_0:1,mlx5_3:1"}
    assert decode.argv == ("run", "--x", "--disaggregation-ib-device", "mlx5_11", "--y")
    assert (decode.nics, decode.env) == (("mlx5_11",), {"UCX_NET_DEVICES": "mlx5_11:1"})
    prefill, _ = engines_of(profile, make_inventory(gpus=2))
    assert (prefill.argv, prefill.env) == (("run", "--x", "--y"), {})


@pytest.mark.parametrize(
    ("env", "environment", "nics"),
    [({"KVCACHE_RDMA_NICS": "mlx5_4"}, "mlx5_5", "mlx5_4"), ({}, "mlx5_5", "mlx5_5"), ({}, None, "mlx5_0")],
)
def test_the_user_says_it_before_the_environment_does(
    tmp_path: Path, env: dict[str, str], environment: str | None, nics: str
):
    host = inventory_of(hgx_h100(tmp_path)).model_copy(update={"nics_in_environment": environment})
    profile = profile_of(args=[["--nics", "{nics}"]], env={"KVCACHE_RDMA_NICS": "{nics}"})
    prefill, _ = engines_of(profile, host, prefill={"env": env})
    assert prefill.argv == ("run", "--nics", nics)
    assert (prefill.env["KVCACHE_RDMA_NICS"], prefill.nics) == (nics, (nics,))


def test_an_engine_that_is_told_to_use_no_nic(tmp_path: Path):
    profile = profile_of(args=[["--nics", "{nics}"]], env={"UCX_NET_DEVICES": "{ucx_net_devices}"})
    prefill, _ = engines_of(profile, inventory_of(hgx_h100(tmp_path)), prefill={"env": {"KVCACHE_RDMA_NICS": ""}})
    assert (prefill.argv, prefill.env, prefill.nics) == (("run",), {"KVCACHE_RDMA_NICS": ""}, ())


def test_a_port_for_each_rank():
    profile = profile_of(
        args=["--rdma-comm-ports", "{port.rdma-comm}", "--pd-comm-port={port.pd-comm}"],
        **{"rdma-comm": {"kind": "chosen", "per": "rank"}, "pd-comm": "chosen"},
    )
    prefill, decode = engines_of(profile, make_inventory(gpus=3), prefill={"tp": 2})
    assert prefill.argv == ("run", "--rdma-comm-ports", "20000,20001", "--pd-comm-port=20002")
    assert prefill.ports == {"api": 0, "rdma-comm-0": 20000, "rdma-comm-1": 20001, "pd-comm": 20002}
    assert decode.argv == ("run", "--rdma-comm-ports", "20003", "--pd-comm-port=20004")
    assert decode.ports == {"api": 0, "rdma-comm": 20003, "pd-comm": 20004}


def test_a_port_that_a_rank_reports():
    profile = profile_of(args=["--ports", "{port.x}"], x={"kind": "reported", "per": "rank"})
    assert engines_of(profile, make_inventory(gpus=3), prefill={"tp": 2})[0].argv == ("run", "--ports", "0,0")


GIVEN = {"rdma-comm": {"kind": "given", "per": "rank"}, "pd-comm": "reported"}
ARGS = [["--rdma-comm-ports", "{port.rdma-comm}"], "--pd-comm-port", "{port.pd-comm}"]


@pytest.mark.parametrize("ports", ["7671,7672", [7671, 7672]])
def test_as_many_ports_as_there_are_ranks_are_given(ports: Any):
    prefill, decode = engines_of(
        profile_of(ARGS, **GIVEN), make_inventory(gpus=3), prefill={"tp": 2, "args": {"rdma-comm-ports": ports}}
    )
    assert prefill.argv == ("run", "--rdma-comm-ports", "7671,7672", "--pd-comm-port", "0")
    assert decode.argv == ("run", "--pd-comm-port", "0")
    assert set(decode.ports) == {"api", "pd-comm"}


@pytest.mark.parametrize(
    ("tp", "args", "said"),
    [
        (2, {"rdma-comm-ports": 7671}, "rdma-comm-ports: 1 port(s) given, 2 needed: one for each rank, with tp 2"),
        (2, {"rdma-comm-ports": "1,2,3"}, "rdma-comm-ports: 3 port(s) given, 2 needed: one for each rank, with tp 2"),
        (1, {"rdma-comm-ports": True}, "rdma-comm-ports: 0 port(s) given, 1 needed: one for each rank, with tp 1"),
        (2, {"rdma-comm-ports": "7671,"}, "rdma-comm-ports: 1 port(s) given, 2 needed: one for each rank, with tp 2"),
        (1, {"pd-comm-port": [1, 2]}, "pd-comm-port: 2 port(s) given, 1 needed: one in all"),
        (2, {"pd-comm-port": "1,2"}, "pd-comm-port: 2 port(s) given, 1 needed: one in all"),
    ],
)
def test_too_few_or_too_many_ports(tp: int, args: dict[str, Any], said: str):
    with pytest.raises(PlanError) as caught:
        engines_of(profile_of(ARGS, **GIVEN), make_inventory(gpus=9), decode=[{}, {"tp": tp, "args": args}])
    assert str(caught.value) == f"decode[1].args.{said}"


def test_the_builtin_engine_has_one_port_of_each_kind():
    profile = load_profile("builtin")
    for role, flag in (("decode", "rdma-comm-ports"), ("decode", "pd-comm-port")):
        with pytest.raises(PlanError, match=rf"^{role}\[0\].args.{flag}: 2 port\(s\) given, 1 needed: "):
            engines_of(profile, make_inventory(), **{role: {"args": {flag: "7671,7672"}}})
        assert engines_of(profile, make_inventory(), **{role: {"args": {flag: False}}})
