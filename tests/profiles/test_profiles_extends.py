"""Profiles that extend others, and what depends on an engine's version."""

from pathlib import Path

import pytest
import yaml

from pdctl.errors import TopologyError
from pdctl.profiles import engine_names, load_profile, load_router_profile, router_names
from pdctl.profiles.loading import is_router_file, profile_text
from pdctl.profiles.models import OWN_PROTOCOLS
from pdctl.profiles.templates import Template
from pdctl.router.protocols import PROTOCOLS


def write(folder: Path, **content: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "description": "ours", **content}))
    return str(path)


def test_an_extended_profile_keeps_what_is_not_said_again(tmp_path: Path):
    mine = load_profile(write(tmp_path, extends="vllm", env={"A": "1", "UCX_NET_DEVICES": None}, stop_grace_s=5))
    vllm = load_profile("vllm")
    assert (mine.name, mine.stop_grace_s, mine.command, mine.roles) == ("mine", 5, vllm.command, vllm.roles)
    assert set(mine.env) == {*vllm.env, "A"} - {"UCX_NET_DEVICES"}


def test_lists_are_replaced_and_mappings_joined(tmp_path: Path):
    roles = {"decode": {"args": ["--x"]}}
    mine = load_profile(write(tmp_path, extends="vllm", roles=roles))
    assert [template.texts for template in mine.roles["decode"].args] == [("--x",)]
    assert mine.roles["decode"].ports == load_profile("vllm").roles["decode"].ports


def test_a_profile_that_extends_nothing_known(tmp_path: Path):
    path = write(tmp_path, extends="vlm")
    with pytest.raises(TopologyError) as caught:
        load_profile(path)
    assert str(caught.value) == f"{path}:2: extends: unknown engine 'vlm', did you mean 'vllm'?"


@pytest.mark.parametrize("base", [["vllm"], {"a": 1}, 5])
def test_a_profile_that_extends_what_is_no_name(tmp_path: Path, base: object):
    with pytest.raises(TopologyError, match=r"mine.yaml:2: extends: expected the name of an engine, got "):
        load_profile(write(tmp_path, extends=base))


def test_nothing_in_a_mapping_that_is_new_takes_away_too(tmp_path: Path):
    roles = {"mixed": {"env": {"A": None, "B": "1"}}}
    assert set(load_profile(write(tmp_path, extends="vllm", roles=roles)).roles["mixed"].env) == {"B"}


def test_the_text_of_a_profile_is_complete(tmp_path: Path):
    text = profile_text("vllm-mooncake")
    assert "extends" not in text
    (tmp_path / "copy.yaml").write_text(text)
    assert load_profile(str(tmp_path / "copy.yaml")) == load_profile("vllm-mooncake")


@pytest.mark.parametrize("name", router_names())
def test_every_router_loads_under_its_name_and_has_engines(name: str):
    router = load_router_profile(name)
    assert router.name == name
    assert {load_profile(engine).protocol for engine in engine_names()} & set(router.protocols)


def test_an_unknown_router():
    with pytest.raises(TopologyError, match=r"^router.kind: unknown router 'vllm-ruter', did you mean 'vllm-router'\?"):
        load_router_profile("vllm-ruter")


def test_which_file_is_a_routers(tmp_path: Path):
    assert not is_router_file(Path(write(tmp_path, protocol="builtin")))
    assert is_router_file(Path(write(tmp_path, protocols=["builtin"])))


def test_the_protocols_are_those_of_our_router():
    assert sorted(OWN_PROTOCOLS) == sorted(PROTOCOLS)


@pytest.mark.parametrize(("version", "there"), [("2.4.9", True), ("2.5.0", False), ("2.4+cu126", True), (None, False)])
def test_what_is_there_for_some_versions_only(version: str | None, there: bool):
    template = Template.model_validate(Template.parse({"args": ["--a", 5], "versions": "<2.5"}))
    assert (template.texts, template.is_for(version)) == (("--a", "5"), there)


def test_versions_that_are_none(tmp_path: Path):
    with pytest.raises(TopologyError, match=r"expected versions such as '>=0.20,<0.30', got '2.5'"):
        load_profile(write(tmp_path, extends="vllm", env={"A": {"value": "1", "versions": "2.5"}}))


def test_a_pattern_that_is_none(tmp_path: Path):
    with pytest.raises(TopologyError, match="is no regular expression"):
        load_profile(write(tmp_path, extends="vllm", troubles=[{"pattern": "(", "advice": "a"}]))
