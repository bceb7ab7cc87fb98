"""Whether all hosts have the same model."""

from typing import Any

import pytest
from doctor_samples import MODEL, make_facts, make_host, make_model, model_files, shown, two_hosts, worst

from pdctl.doctor.checks.model import check_model

OTHER = {"size": 5 << 30, "digest": "another"}
HUB = {"kind": "hub", "path": "/hf/hub/models--org--m", "commit": "abc"}


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({}, "ok b: 3 files, 10 GiB: /models/m"),
        ({"exists": False, "files": {}}, "error b: there is no /models/m"),
        ({"missing": ["model-2.safetensors"]}, "error b: /models/m lacks model-2.safetensors"),
        ({"pointers": ["a", "b", "c", "d"]}, "error b: in /models/m Git LFS has not fetched a, b, c and 1 more"),
        ({"files": model_files(model_1=OTHER)}, "error b: /models/m is not what host a has: model-1.safetensors"),
        ({"files": model_files(config_json=None)}, "error b: /models/m is not what host a has: config.json"),
    ],
)
def test_the_model_of_the_second_host(model: dict[str, Any], text: str):
    facts = make_facts(*two_hosts(model=make_model(**model)))
    assert shown(check_model(facts)) == ["ok a: 3 files, 10 GiB: /models/m", text]


@pytest.mark.parametrize(
    ("ssh", "remedy"),
    [
        ((None, "b"), f"rsync -a --checksum {MODEL}/ b:{MODEL}/"),
        (("a", None), f"rsync -a --checksum a:{MODEL}/ {MODEL}/"),
        (("a", "b"), f"ssh a rsync -a --checksum {MODEL}/ 10.0.0.2:{MODEL}/"),
    ],
)
def test_the_command_that_copies_it(ssh: tuple[str | None, str | None], remedy: str):
    absent = make_model(exists=False, files={})
    facts = make_facts(make_host(ssh=ssh[0]), make_host("b", "10.0.0.2", ssh=ssh[1], model=absent))
    assert [finding.remedy for finding in worst(check_model(facts))] == [remedy]


def test_the_first_host_that_has_it_whole_counts():
    absent = make_model(exists=False, files={})
    facts = make_facts(make_host(model=absent), make_host("b", "10.0.0.2"))
    assert shown(check_model(facts)) == ["error a: there is no /models/m", "ok b: 3 files, 10 GiB: /models/m"]


def test_files_that_were_not_read_differ_by_their_sizes_only():
    unread = {name: file.model_copy(update={"digest": None}) for name, file in model_files().items()}
    grown = {**unread, "model-1.safetensors": unread["model-1.safetensors"].model_copy(update={"size": 7})}
    models = [make_model(files=files) for files in (unread, unread, grown)]
    hosts = [make_host(name, f"10.0.0.{index}", model=models[index]) for index, name in enumerate("abc")]
    roles = {"decode": [{"host": "b"}, {"host": "c"}]}
    assert [finding.host for finding in worst(check_model(make_facts(*hosts, topology=roles)))] == ["c"]


def test_a_model_of_the_hub():
    hosts = [make_host(name, f"10.0.0.{index}") for index, name in enumerate("abc")]
    models = [
        make_model(**HUB),
        make_model(**HUB, missing=["model-2.safetensors"]),
        make_model(**HUB | {"commit": "d"}),
    ]
    hosts = [make_host(host.name, host.address, model=model) for host, model in zip(hosts, models, strict=True)]
    roles = {"decode": [{"host": "b"}, {"host": "c"}]}
    findings = list(check_model(make_facts(*hosts, topology=roles)))
    assert [(finding.level, finding.host) for finding in findings] == [("ok", "a"), ("warning", "b"), ("error", "c")]
    assert findings[1].remedy == "hf download org/m"
    assert findings[2].text.endswith("is not what host a has: commit d instead of abc")


def test_a_name_is_the_engine_s_affair():
    model = {"kind": "name", "path": "smollm2", "exists": False, "free_bytes": 0}
    assert not list(check_model(make_facts(make_host(model=model))))
