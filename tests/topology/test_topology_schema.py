"""The JSON Schema: every key explained, and the short forms in it."""

from typing import Any

import pytest

from pdctl.topology.models import json_schema

SECTIONS = ("Topology", "Router", "Host", "EngineGroup", "Restart")


def properties(section: str) -> dict[str, Any]:
    schema = json_schema()
    return (schema if section == "Topology" else schema["$defs"][section])["properties"]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_description_default_and_examples(section: str):
    for key, schema in properties(section).items():
        assert schema.get("description"), key
        assert "default" in schema, key
        assert schema.get("examples"), key


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_refused(section: str):
    schema = json_schema()
    assert (schema if section == "Topology" else schema["$defs"][section])["additionalProperties"] is False


def test_short_forms_are_part_of_it():
    kinds = [form.get("type", "group") for form in properties("Topology")["prefill"]["anyOf"]]
    assert kinds == ["integer", "group", "array"]
    (host,) = properties("Topology")["hosts"]["patternProperties"].values()
    assert {"const": "local", "type": "string"} in host["anyOf"]


def test_limits_are_part_of_it():
    port = properties("Router")["port"]
    assert (port["minimum"], port["maximum"]) == (0, 65535)
    assert properties("EngineGroup")["tp"]["minimum"] == 1
    assert "pattern" in properties("Topology")["name"]
