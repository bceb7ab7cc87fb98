"""The plan: what runs where, and the exact line that says why it cannot."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from inventories import make_inventory

from pdctl.errors import ExitCode, PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.planner import make_plan, ports_to_probe
from pdctl.planning.user_args import with_args
from pdctl.profiles import Profile, load_profile
from pdctl.router.arguments import parse
from pdctl.topology.loading import load_topology
from pdctl.topology.models import Topology

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def topology_of(**sections: Any) -> Topology:
    return Topology.model_validate({"prefill": 1, "decode": 1} | sections)


def plan_of(topology: Topology, profile: Profile | None = None, **inventories: Inventory) -> Plan:
    return make_plan(topology, profile or load_profile("builtin"), {"here": make_inventory()} | inventories)


def refusal(topology: Topology, profile: Profile | None = None, **inventories: Inventory) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(topology, profile, **inventories)
    assert caught.value.exit_code == ExitCode.PLAN == 4
    return str(caught.value)


def gpu_profile(**changes: Any) -> Profile:
    built_in = load_profile("builtin").model_dump()
    return Profile.model_validate(
        built_in
        | {
            "gpus": "required",
            "limits": {},
            "env": {"CUDA_VISIBLE_DEVICES": "{gpus}"},
            "command": ["run", "--tp", "{tp}"],
        }
        | changes
    )


def option(process: ProcessPlan, flag: str) -> str:
    return process.argv[process.argv.index(flag) + 1]


def test_the_embedded_default():
    plan = plan_of(load_topology(None))
    router, prefill, decode = plan.processes
    assert [process.name for process in plan.processes] == ["router", "prefill-0", "decode-0"]
    assert router.argv == (
        *("/usr/bin/python3", "-P", "-m", "pdctl.router", "--host", "127.0.0.1", "--port", "8000", "--splitwise"),
        *("--prefill-policy", "process_tokens", "--decode-policy", "request_num"),
        *("--workers", "1", "--drain-secs", "10"),
    )
    assert decode.argv == (
        *("/usr/bin/python3", "-P", "-m", "engine", "--model", "smollm2-135m-instruct"),
        *("--host", "127.0.0.1", "--advertise-host", "127.0.0.1", "--port", "0", "--metrics-port", "0"),
        *("--splitwise-role", "decode", "--router", "127.0.0.1:8000", "--threads", "2", "--pd-comm-port", "0"),
        *("--rdma-comm-ports", "0"),
    )
    assert option(prefill, "--splitwise-role") == "prefill"
    assert prefill.env == {"OMP_NUM_THREADS": "2"}
    assert router.ports == {"api": 8000}
    assert prefill.ports == {"api": 0, "metrics": 0}
    assert decode.ports == {"api": 0, "metrics": 0, "pd-comm": 0, "rdma-comm": 0}
    assert decode.metrics["transferred_tokens"] == 'pdctl:prompt_tokens_by_source_total{source="kv_transfer"}'
    assert router.metrics["requests"] == "pdctl_router_requests_total"


def test_mixed_engines():
    plan = plan_of(topology_of(prefill=0, decode=0, mixed=2, router={"mixed_policy": "random"}))
    assert [engine.name for engine in plan.engines] == ["mixed-0", "mixed-1"]
    assert "--splitwise" not in plan.router.argv
    assert option(plan.router, "--mixed-policy") == "random"


def test_the_routers_own_flags():
    router = {"workers": 0, "pd_min_tokens": 64, "drain_secs": 30.5, "args": {"queue-size": 5, "debug": True}}
    plan = plan_of(topology_of(router=router))
    assert {flag: option(plan.router, flag) for flag in ("--workers", "--pd-min-tokens", "--queue-size")} == {
        "--workers": "0",
        "--pd-min-tokens": "64",
        "--queue-size": "5",
    }
    assert plan.router.argv[-1] == "--debug"
    assert option(plan.router, "--drain-secs") == "30.5"
    assert plan.router.stop_grace_s == 35.5, "it may drain for as long as it was told"


@pytest.mark.parametrize("sections", [{}, {"prefill": 0, "decode": 0, "mixed": 1}])
def test_the_router_takes_what_is_planned(sections: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PDCTL_TOKEN_FILE", raising=False)
    router = {"workers": 3, "pd_min_tokens": 64, "args": {"queue-size": 5}}
    argv = plan_of(topology_of(router=router, **sections)).router.argv
    settings, _ = parse(argv[argv.index("pdctl.router") + 1 :])
    assert (settings.workers, settings.pd_min_tokens, settings.queue_size, settings.drain) == (3, 64, 5, 10)
    assert settings.splitwise == (not sections)


def test_the_router_port_is_filled_in_later_where_it_is_any():
    plan = plan_of(topology_of(router={"port": 0}))
    assert {option(engine, "--router") for engine in plan.engines} == {"{router}"}


def test_groups_of_a_role_are_numbered_through():
    plan = plan_of(topology_of(prefill=[{"replicas": 2}, {"args": {"x": 1}}]))
    assert [engine.name for engine in plan.engines] == ["prefill-0", "prefill-1", "prefill-2", "decode-0"]


@pytest.mark.parametrize(("cpus", "threads"), [(1, "1"), (3, "1"), (4, "1"), (8, "2"), (11, "2")])
def test_engines_share_the_processors_of_their_host(cpus: int, threads: str):
    plan = plan_of(topology_of(prefill=3), here=make_inventory(cpus=cpus))
    assert {option(engine, "--threads") for engine in plan.engines} == {threads}


def test_the_users_flags_and_variables_come_first():
    args = {"threads": 7, "dtype": "float32", "no-prefix-caching": True, "router": False, "list": [1, "b"], "low": -1}
    plan = plan_of(topology_of(decode={"args": args, "env": {"OMP_NUM_THREADS": "7", "A": "b"}}))
    decode = plan.engines[1]
    ending = ("--dtype", "float32", "--no-prefix-caching", "--list", "1,b", "--low=-1")
    assert decode.argv[-len(ending) :] == ending
    assert option(decode, "--threads") == "7"
    assert decode.argv.count("--threads") == 1
    assert "--router" not in decode.argv
    assert decode.env == {"OMP_NUM_THREADS": "7", "A": "b"}


def test_a_deployment_on_several_hosts_uses_their_addresses():
    hosts = {"gpu1": {"ssh": "ops@gpu1", "python": "/opt/python"}, "gpu2": {"ssh": "gpu2", "address": "10.9.9.9"}}
    topology = topology_of(hosts=hosts, prefill={"host": "gpu1"}, decode={"host": "gpu2"})
    plan = plan_of(topology, gpu1=make_inventory(address="10.0.0.2"), gpu2=make_inventory(address="10.0.0.3"))
    prefill, decode = plan.engines
    assert {name: host.address for name, host in plan.hosts.items()} == {
        "here": "10.0.0.1",
        "gpu1": "10.0.0.2",
        "gpu2": "10.9.9.9",
    }
    assert plan.hosts["gpu1"].ssh == "ops@gpu1"
    assert option(plan.router, "--host") == "10.0.0.1"
    assert (prefill.argv[0], option(prefill, "--host"), option(prefill, "--router")) == (
        *("/opt/python", "10.0.0.2", "10.0.0.1:8000"),
    )
    assert (decode.argv[0], option(decode, "--advertise-host")) == ("/usr/bin/python3", "10.9.9.9")


@pytest.mark.parametrize(("bind", "engines_use"), [("0.0.0.0", "127.0.0.1:8000"), ("192.168.1.5", "192.168.1.5:8000")])
def test_where_the_router_listens(bind: str, engines_use: str):
    """That it is open to other machines opens no engine."""
    plan = plan_of(topology_of(router={"bind": bind}))
    assert option(plan.router, "--host") == bind
    assert option(plan.engines[0], "--router") == engines_use
    assert f"{plan.router.address}:8000" == engines_use
    for engine in plan.engines:
        assert (option(engine, "--host"), option(engine, "--advertise-host"), engine.address) == ("127.0.0.1",) * 3


def test_only_hosts_that_run_something_are_looked_at():
    hosts = {"a": {"ssh": "a", "python": "/opt/python"}, "b": {"ssh": "b"}, "c": {"ssh": "c"}}
    topology = topology_of(
        hosts=hosts, router={"host": "a"}, prefill=[{"host": "a"}, {"host": "b", "replicas": 0}], decode={"host": "a"}
    )
    assert ports_to_probe(topology, load_profile("builtin")) == {"a": [8000]}
    assert list(plan_of(topology, a=make_inventory()).hosts) == ["a"]


def test_a_taken_router_port():
    taken = {"here": make_inventory(taken_ports={8000: "pid 123 (nginx)"})}
    assert refusal(topology_of(), **taken) == (
        "router.port: port 8000 of host 'here' is not free: pid 123 (nginx); choose another with "
        "`router: {port: ...}` in the topology file (0: any free one)"
    )
    assert plan_of(topology_of(router={"port": 8001}), **taken).router.ports == {"api": 8001}


@pytest.mark.parametrize(
    ("sections", "gpus", "line"),
    [
        ({"prefill": {"gpus": [7]}}, 0, "prefill[0].gpus: host 'here' has no GPU 7: it has none"),
        ({"decode": [{}, {"gpus": [2]}]}, 2, "decode[1].gpus: host 'here' has no GPU 2: it has 0 (H200), 1 (H200)"),
        ({"prefill": {"gpus": [0]}}, 2, "prefill[0].gpus: engine 'builtin' uses no GPU: leave gpus out"),
        (
            {"decode": {"gpus": [0, 1]}, "engine": "vllm"},
            3,
            "decode[0].gpus: 2 given, 1 needed on host 'here' (replicas 1 x tp 1)",
        ),
        ({"prefill": {"tp": 2}}, 2, "prefill[0].tp: engine 'builtin' goes up to tp 1, got 2"),
    ],
)
def test_what_an_engine_on_this_host_cannot_do(sections: dict[str, Any], gpus: int, line: str):
    profile = load_profile(sections.get("engine", "builtin"))
    assert refusal(topology_of(**sections), profile, here=make_inventory(gpus=gpus)) == line


def test_gpus_are_dealt_to_the_engines_that_need_them():
    topology = topology_of(prefill={"replicas": 2, "gpus": [3, 1]}, decode={"tp": 2})
    engines = plan_of(topology, gpu_profile(), here=make_inventory(gpus=4)).engines
    assert [engine.gpus for engine in engines] == [(3,), (1,), (0, 2)]
    assert [engine.env["CUDA_VISIBLE_DEVICES"] for engine in engines] == ["3", "1", "0,2"]
    assert option(engines[2], "--tp") == "2"


def test_too_few_gpus():
    line = refusal(topology_of(prefill=1, decode=2), gpu_profile(), here=make_inventory(gpus=2))
    assert line == (
        "decode[0]: engine 'builtin' needs 2 free GPU(s) on host 'here' (replicas 2 x tp 1), 1 left: "
        "it has 0 (H200), 1 (H200)"
    )


def test_gpus_in_use_are_not_free():
    host = make_inventory(gpus=3)
    busy = host.gpus[0].model_copy(update={"memory_used_mb": 40000, "users": ("pid 7 (python)",)})
    host = host.model_copy(update={"gpus": (busy, *host.gpus[1:])})
    assert [engine.gpus for engine in plan_of(topology_of(), gpu_profile(), here=host).engines] == [(1,), (2,)]
    line = refusal(topology_of(decode=2), gpu_profile(), here=host)
    assert line.endswith("1 left: it has 0 (H200, 40000 MB in use by pid 7 (python)), 1 (H200), 2 (H200)")
    asked = topology_of(prefill={"gpus": [0]})
    assert plan_of(asked, gpu_profile(), here=host).engines[0].gpus == (0,)


def test_why_gpus_are_not_known():
    host = make_inventory().model_copy(update={"gpu_problem": "nvidia-smi did not answer in 10 s"})
    assert len(plan_of(topology_of(), here=host).engines) == 2
    said = "it has none that is known of: nvidia-smi did not answer in 10 s"
    assert refusal(topology_of(), gpu_profile(), here=host).endswith(said)
    assert refusal(topology_of(prefill={"gpus": [0]}), gpu_profile(), here=host).endswith(said)


def test_a_role_that_the_engine_does_not_have():
    profile = gpu_profile(gpus="none", roles={"mixed": {"ports": {"api": "reported"}}})
    assert refusal(topology_of(), profile) == "prefill: engine 'builtin' has no such role: it has mixed"


def test_chosen_ports_are_free_and_differ():
    roles = {role: {"args": ["--port", "{port.api}"], "ports": {"api": "chosen"}} for role in ("prefill", "decode")}
    profile, topology = gpu_profile(gpus="none", roles=roles), topology_of(prefill=2, router={"port": 20001})
    assert set(ports_to_probe(topology, profile)["here"]) > {20000, 20001, 20002}
    engines = plan_of(topology, profile, here=make_inventory(taken_ports={20002: "pid 5 (x)"})).engines
    assert [engine.ports["api"] for engine in engines] == [20000, 20003, 20004]
    assert option(engines[1], "--port") == "20003"


def test_a_host_that_was_not_probed():
    with pytest.raises(PlanError, match=r"^hosts.here: nothing is known about this host: it was not probed$"):
        make_plan(topology_of(), load_profile("builtin"), {})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_makes_a_plan(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SMOLLM2_FOLDER", str(tmp_path))
    topology = load_topology(path)
    addresses = (f"10.0.0.{number}" for number in itertools.count(1))
    inventories = {name: make_inventory(address=next(addresses)) for name in topology.hosts}
    plan = make_plan(topology, load_profile(topology.engine), inventories)
    assert len(plan.engines) >= 2
    assert yaml.safe_load(path.read_text())["name"] == plan.name == topology.name


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} == {"default", "2p1d", "mixed", "two-hosts", "vllm-cpu"}


groups = st.lists(
    st.fixed_dictionaries(
        {"host": st.sampled_from(["here", "other"]), "replicas": st.integers(0, 3)},
        optional={"args": st.just({"dtype": "float32"}), "env": st.just({"A": "{b}"})},
    ),
    max_size=3,
)
sections = st.fixed_dictionaries(
    {"prefill": groups, "decode": groups, "router": st.fixed_dictionaries({"port": st.sampled_from([0, 8000])})}
)


@settings(max_examples=60, deadline=None)
@given(sections=sections, cpus=st.integers(1, 64))
def test_every_plan(sections: dict[str, Any], cpus: int):
    profile = load_profile("builtin")
    inventories = {"here": make_inventory(cpus=cpus), "other": make_inventory(cpus=1, address="10.0.0.2")}
    build = lambda: make_plan(  # noqa: E731
        Topology.model_validate(sections | {"hosts": {"other": {"ssh": "other"}}}), profile, inventories
    )
    plan = build()
    assert plan == build()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    names = [process.name for process in plan.processes]
    assert len(set(names)) == len(names)
    assert len(plan.engines) == sum(group["replicas"] for role in ("prefill", "decode") for group in sections[role])
    for engine in plan.engines:
        ports = profile.roles[engine.role].ports
        assert set(engine.ports) == {purpose for purpose, port in ports.items() if port.kind != "given"}
        assert int(option(engine, "--threads")) >= 1
        left = {token for token in engine.argv if "{" in token}
        assert left == ({"{router}"} if sections["router"]["port"] == 0 else set())


@pytest.mark.parametrize(
    ("argv", "left"),
    [
        (["--x", "1", "-v", "pos"], ["-v", "pos"]),
        (["--x=1", "pos"], ["pos"]),
        (["--x", "-1", "-2.5", "-1e-3", "--y", "-1"], ["--y", "-1"]),
        (["--x", "1", "2", "--xy", "3", "-x", "4"], ["--xy", "3", "-x", "4"]),
    ],
)
def test_a_flag_goes_with_its_values_and_nothing_else(argv: list[str], left: list[str]):
    assert with_args(argv, {"x": False}) == left


names = st.text(alphabet="abc", min_size=1, max_size=2)
values = st.one_of(st.booleans(), st.integers(), st.text(max_size=4), st.lists(st.integers(), min_size=1, max_size=3))


@settings(max_examples=50, deadline=None)
@given(own=st.dictionaries(names, st.text(alphabet="xyz", min_size=1)), users=st.dictionaries(names, values))
def test_a_flag_is_given_once_and_the_users_value_counts(own: dict[str, str], users: dict[str, Any]):
    argv = with_args(["run", *(token for name, value in own.items() for token in (f"--{name}", value))], users)
    assert argv[0] == "run"
    for name in own.keys() | users.keys():
        given = [token for token in argv if token == f"--{name}" or token.startswith(f"--{name}=")]
        assert len(given) == (users.get(name) is not False)
    for name in own.keys() - users.keys():
        assert argv[argv.index(f"--{name}") + 1] == own[name]
