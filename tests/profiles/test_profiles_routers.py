"""Profiles of routers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pdctl.errors import TopologyError
from pdctl.profiles import load_router_profile
from pdctl.profiles.models import RouterProfile


def router(**content: Any) -> dict[str, Any]:
    least = {"name": "mine", "description": "ours", "protocols": ["vllm-nixl"], "command": ["run"]}
    return {**least, "ports": {"api": "chosen"}, **content}


def write(folder: Path, **content: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(router(**content)))
    return str(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"command": ["run", "--threads", "{threads}"]}, "unknown placeholder {threads} of a router, "),
        ({"command": ["run", ["--gpus", "{gpus}"]]}, "unknown placeholder {gpus} of a router, "),
        ({"env": {"A": "{nics}"}}, "unknown placeholder {nics} of a router, "),
        ({"pd": ["--x", "{engine}"]}, "unknown placeholder {engine} of a router, "),
        (
            {"engines": {"mixed": ["--x", "{engines}"]}},
            "unknown placeholder {engines} of role mixed, did you mean 'engine'?",
        ),
        (
            {"engines": {"mixed": {"once": ["{engine}"], "each": ["{engine}"]}}},
            "unknown placeholder {engine} of a router, ",
        ),
        ({"engines": {"mixed": {"once": ["--x"]}}}, "engines.mixed.each: is missing"),
        (
            {"command": ["run", {"args": ["--old"], "versions": "<1"}]},
            "versions '<1': the version of a router is not known: leave it out",
        ),
        ({"env": {"A": {"value": 1, "versions": "<1"}}}, "versions '<1': the version of a router is not known"),
        (
            {"command": ["run", "{port.x}"], "ports": {"api": "chosen", "x": "given"}},
            "{port.x} of a router can be missing: ",
        ),
    ],
)
def test_what_is_wrong_in_a_routers_profile(tmp_path: Path, content: dict[str, Any], said: str):
    with pytest.raises(TopologyError) as caught:
        load_router_profile(write(tmp_path, **content))
    assert str(caught.value).split(": ", 1)[1].startswith(said)


def test_what_a_router_is_told_of_engines_is_a_list_or_has_a_flag_before_it():
    engines = {"prefill": ["--p", "{engine}"], "mixed": {"once": ["--m"], "each": ["{engine}"]}}
    prefill, mixed = RouterProfile.model_validate(router(engines=engines)).engines.values()
    assert ([one.texts for one in prefill.once], [one.texts for one in prefill.each]) == ([], [("--p",), ("{engine}",)])
    assert ([one.texts for one in mixed.once], [one.texts for one in mixed.each]) == ([("--m",)], [("{engine}",)])


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sglang-router", {"--pd-disaggregation", "--prefill", "--decode", "--worker-urls"}),
        ("vllm-router", {"--vllm-pd-disaggregation", "--prefill", "--decode", "--worker-urls"}),
        ("fd-router", {"--splitwise"}),
        ("lmdeploy-proxy", set()),
    ],
)
def test_which_flags_follow_from_the_roles(name: str, flags: set[str]):
    assert load_router_profile(name).role_flags == flags
