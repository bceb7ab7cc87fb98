"""Users' flags in the command lines of engines."""

from typing import Any

import pytest
from planned_engines import options, plan_of, refusal

from pdctl.planning.user_args import with_args

DOTTED = ["vllm", "--c.a", "1", "--c.b", "2", "--c-d", "3"]


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        ({"c.b": 5}, ["vllm", "--c.a", "1", "--c.b", "5", "--c-d", "3"]),
        ({"c.x": 5}, [*DOTTED, "--c.x", "5"]),
        ({"c": "{}"}, ["vllm", "--c", "{}", "--c-d", "3"]),
        ({"c": False}, ["vllm", "--c-d", "3"]),
        ({"c_d": 5}, ["vllm", "--c.a", "1", "--c.b", "2", "--c_d", "5"]),
        ({"c.A": 5}, [*DOTTED, "--c.A", "5"]),
    ],
)
def test_keys_of_a_flag(args: dict[str, Any], argv: list[str]):
    assert with_args(DOTTED, args) == argv


def test_a_flag_stays_in_its_place():
    argv = ["launch", "--ports", "1", "--args", "--model", "M"]
    assert with_args(argv, {"ports": [5, 6], "x": 1}) == [
        "launch",
        "--ports",
        "5,6",
        "--args",
        "--model",
        "M",
        "--x",
        "1",
    ]


def test_the_place_is_the_first_of_several():
    assert with_args(["run", "--a", "1", "--b", "--a=2"], {"a": 3}) == ["run", "--a", "3", "--b"]


def test_a_key_of_vllms_transfer_leaves_the_others_as_they_are():
    """vLLM would drop a whole --kv-transfer-config for it, and serve without PD."""
    name = "kv-transfer-config.kv_connector_extra_config.kv_lease_duration"
    prefill, _ = plan_of("vllm", prefill={"args": {name: 60}}).engines
    given = {flag: options(prefill.argv, flag) for flag in prefill.argv if flag.startswith("--kv-transfer-config")}
    assert given == {
        "--kv-transfer-config.kv_connector": ["NixlConnector"],
        "--kv-transfer-config.kv_role": ["kv_producer"],
        "--kv-transfer-config.kv_load_failure_policy": ["fail"],
        f"--{name}": ["60"],
    }


@pytest.mark.parametrize("name", ["kv-transfer-config", "kv_transfer_config"])
def test_a_whole_transfer_of_the_users_own_replaces_the_profiles(name: str):
    prefill, _ = plan_of("vllm", prefill={"args": {name: '{"kv_connector": "X"}'}}).engines
    assert [token for token in prefill.argv if token.startswith("--kv")] == [f"--{name}"]


def test_a_key_beside_the_whole_is_refused():
    args = {"kv-transfer-config": '{"kv_connector":"X"}', "kv-transfer-config.kv_role": "kv_both"}
    assert refusal("vllm", prefill={"args": args}) == (
        "prefill[0].args.kv-transfer-config.kv_role: --kv-transfer-config is given as a whole too, and would be "
        "dropped for this: give all by its keys"
    )


def test_flags_of_fastdeploys_launcher_stay_before_those_of_its_servers():
    group = {"dp": 2, "args": {"ports": [8100, 8101], "metrics-ports": [8200, 8201], "max-model-len": 8192}}
    prefill = plan_of("fastdeploy-dp", prefill=group, decode={"dp": 2}).engines[0]
    launcher, servers = prefill.argv[: prefill.argv.index("--args")], prefill.argv[prefill.argv.index("--args") :]
    assert launcher[3:] == ("--ports", "8100,8101", "--num-servers", "2", "--metrics-ports", "8200,8201")
    assert options(servers, "--max-model-len") == ["8192"]
    assert (prefill.port_numbers["api"], prefill.port_numbers["metrics"]) == ((8100, 8101), (8200, 8201))
