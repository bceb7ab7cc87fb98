"""Profiles: engines as data."""

from pathlib import Path

import pytest
import yaml

from pdctl.deployment.models import Load
from pdctl.errors import TopologyError
from pdctl.profiles import Port, fill, load_profile
from pdctl.profiles.models import LoadName

BUILT_IN = Path(__file__).parents[2] / "profiles"


def write(folder: Path, **changes: object) -> str:
    profile = yaml.safe_load((BUILT_IN / "builtin.yaml").read_text()) | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return str(path)


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_built_in_profile_loads_under_its_name(path: Path):
    assert load_profile(path.stem).name == path.stem


def test_a_profile_of_ones_own(tmp_path: Path):
    assert load_profile(write(tmp_path, name="mine")).name == "mine"


def test_unknown_engine():
    with pytest.raises(TopologyError) as caught:
        load_profile("bulitin")
    assert str(caught.value) == (
        "engine: unknown engine 'bulitin', did you mean 'builtin'? (a profile of your own is given by its path)"
    )


def test_no_such_profile_file():
    with pytest.raises(TopologyError, match=r"^none.yaml: no such file$"):
        load_profile("./none.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": ["run", "{modell}"]}, "unknown placeholder {modell} of role prefill, did you mean 'model'?"),
        ({"env": {"A": "{port.apis}"}}, "unknown placeholder {port.apis} of role prefill, did you mean 'port.api'?"),
        ({"commands": []}, "commands: unknown key, did you mean 'command'?"),
        ({"command": "run"}, "command: expected a list, got text 'run'"),
        ({"command": []}, "command: must have at least 1 item(s), got a list"),
        ({"metrics": {"runing": "a"}}, "metrics.runing: expected one of "),
        ({"roles": {"prefil": {"ports": {"api": "reported"}}}}, "roles.prefil: expected one of 'prefill', "),
        (
            {"roles": {"mixed": {"ports": {"api": 0}}}},
            "roles.mixed.ports.api.kind: expected one of 'reported', 'chosen' or 'given', ",
        ),
        ({"roles": {"mixed": {"ports": {}}}}, "roles.mixed.ports: must have api, the port of the HTTP API"),
        ({"roles": {"mixed": {"ports": {"api": "given"}}}}, "roles.mixed.ports: must have api, "),
        (
            {"roles": {"mixed": {"ports": {"api": {"kind": "chosen", "per": "rnk"}}}}},
            "roles.mixed.ports.api.per: expected one of 'engine', 'dp' or 'rank', got text 'rnk'",
        ),
        ({"command": ["run", ["--a", "{nic}"]]}, "unknown placeholder {nic} of role prefill, did you mean 'nics'?"),
        ({"command": ["run", []]}, "command[1].texts: must have at least 1 item(s), got a list"),
        (
            {"command": ["run", "--nics", "{nics}"]},
            '{nics} of role prefill can be missing: put it in a list with its flag, [--flag, "{nics}"]',
        ),
        (
            {
                "command": ["run"],
                "roles": {"mixed": {"args": ["--x", "{port.x}"], "ports": {"api": "chosen", "x": "given"}}},
            },
            "{port.x} of role mixed can be missing: ",
        ),
        (
            {"command": ["run"], "roles": {"mixed": {"args": ["{port.rdma0}"], "ports": {"api": "reported"}}}},
            "unknown placeholder {port.rdma0} of role mixed, did you mean 'port.api'?",
        ),
        (
            {"roles": {"mixed": {"ports": {"api": "reported", "RDMA": "chosen"}}}},
            "roles.mixed.ports.RDMA: must match ^[a-z0-9_-]+$, got text 'RDMA'",
        ),
        (
            {"command": ["run", "--addr", "{head}:5"]},
            '{head}:5 of role prefill can be missing: put it in a list with its flag, [--flag, "{head}:5"]',
        ),
        ({"roles": {"mixed": {"ports": {"api": {"kind": "chosen", "count": 2}}}}}, "roles.mixed.ports.api: count: "),
        ({"registers": False}, "registers: expected one of 'with token', 'without token' or 'never', got false"),
        ({"limits": {"max_tp": 0}}, "limits.max_tp: must be at least 1, got the number 0"),
        ({"readiness": {"timeout_s": 0}}, "readiness.timeout_s: must be more than 0, got the number 0"),
    ],
)
def test_what_is_wrong_in_a_profile(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(TopologyError) as caught:
        load_profile(write(tmp_path, **changes))
    place, text = str(caught.value).split(": ", 1)
    assert place.startswith(f"{tmp_path}/mine.yaml:")
    assert text.startswith(said)


def test_a_missing_key(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    with pytest.raises(TopologyError) as caught:
        load_profile(str(path))
    lines = [str(caught.value), *caught.value.detail.splitlines()]
    assert f"{path}:1: command: is missing" in lines


def test_load_names_are_those_of_the_status():
    assert set(LoadName.__args__) == set(Load.model_fields)


def test_filling_leaves_other_braces_alone():
    template = '{model} {"kv": "{role}"} {} {Upper}'
    assert fill([template], {"model": "{role}", "role": "x"}) == ['{role} {"kv": "x"} {} {Upper}']


def test_what_belongs_together_is_left_out_together():
    assert fill(["--nics", "{role}:{nics}"], {"role": "x", "nics": "a,b"}) == ["--nics", "x:a,b"]
    assert fill(["--nics", "{role}:{nics}"], {"role": "x"}) == []


def test_an_argument_is_one_or_a_list(tmp_path: Path):
    profile = load_profile(write(tmp_path, command=["run", 5, ["--nics", "{nics}"], ["--nics={nics}"], "--x={nics}"]))
    texts = [template.texts for template in profile.command]
    assert texts == [("run",), ("5",), ("--nics", "{nics}"), ("--nics={nics}",), ("--x={nics}",)]


def test_a_port_of_any_purpose_is_filled(tmp_path: Path):
    role = {"args": ["{port.rdma_0}"], "ports": {"api": "reported", "rdma_0": "chosen"}}
    (argument,) = load_profile(write(tmp_path, command=["run"], roles={"mixed": role})).roles["mixed"].args
    assert argument.filled({"port.rdma_0": "7"}) == ["7"]


@pytest.mark.parametrize(("per", "needed"), [("engine", 1), ("dp", 2), ("rank", 6)])
def test_how_many_ports_there_are(per: str, needed: int):
    assert Port(kind="chosen", per=per).needed(tp=3, dp=2) == needed
    assert Port(kind="chosen", per=per, count=4, consecutive=True).needed(tp=3, dp=2) == 4 * needed


def test_dollars_in_a_profile_stay(tmp_path: Path):
    assert load_profile(write(tmp_path, env={"A": "${HOME}"})).env["A"].filled({}) == ["${HOME}"]
