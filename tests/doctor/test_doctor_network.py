"""Addresses, the size of packets, and what hosts saw when they visited each other."""

from dataclasses import replace
from typing import Any

import pytest
from doctor_samples import make_facts, make_host, make_inventory, netdev, shown, two_hosts, worst

from pdctl.doctor.checks.addresses import check_addresses, check_mtu
from pdctl.doctor.checks.connections import check_connections
from pdctl.doctor.facts import Facts
from pdctl.doctor.system import Meeting
from pdctl.errors import StepTimeoutError

SPARE = 40000  # what stands for the ports that the builtin engines choose


@pytest.mark.parametrize(
    ("of_b", "finding"),
    [
        ({}, "ok b: 10.0.0.2 on eth0"),
        ({"given_address": "gpu2", "address": "10.0.0.2"}, "ok b: gpu2 on eth0"),
        ({"given_address": "10.9.9.9"}, "error b: 10.9.9.9 is none of its own: its processes cannot listen there"),
        ({"given_address": "10.0.0.1"}, "error b: 10.0.0.1 is that of host a too"),
        (
            {"inventory": make_inventory("127.0.0.1")},
            "error b: no address at which other hosts reach it: it has no default route, and reports 127.0.0.1",
        ),
    ],
)
def test_addresses(of_b: dict[str, Any], finding: str):
    resolved = {"address": of_b.pop("address")} if "address" in of_b else {}
    host = make_host("b", "10.0.0.2", **of_b)
    host = replace(host, system=host.system.model_copy(update=resolved))
    assert shown(check_addresses(make_facts(make_host(), host))) == ["ok a: 10.0.0.1 on eth0", finding]


def test_a_host_alone_needs_no_address():
    host = make_host(inventory=make_inventory("127.0.0.1"))
    assert not list(check_addresses(make_facts(host)))
    assert not list(check_mtu(make_facts(host)))


def test_packets_of_different_sizes():
    facts = make_facts(make_host(netdevs=[netdev("10.0.0.1", 9000)]), make_host("b", "10.0.0.2"))
    (finding,) = check_mtu(facts)
    assert shown(iter([finding])) == ["warning : the hosts have different ones: 9000 on a, 1500 on b"]
    assert finding.remedy == "eth0 of a: sudo ip link set eth0 mtu 1500"
    assert not list(check_mtu(make_facts(*two_hosts())))


def met(outcome: str = "met", port: int = 8000, **system: Any) -> Facts:
    """The router's port and another of host a, as b saw them; a reached b."""
    visits = [("a", port, outcome), ("a", SPARE, "met")]
    meetings = {"a": Meeting(visits=(("b", SPARE, "met"),)), "b": Meeting.model_validate({"visits": visits})}
    return make_facts(make_host(**system), make_host("b", "10.0.0.2"), meetings=meetings)


def test_hosts_that_reach_each_other():
    assert shown(check_connections(met())) == [
        "ok a: b reached it on 8000, one of 32768-60999",
        "ok b: a reached it on one of 32768-60999",
    ]


@pytest.mark.parametrize(
    ("outcome", "why", "remedy"),
    [
        (
            "silent",
            "no answer, as behind a firewall",
            "iptables -I INPUT -p tcp -s 10.0.0.2 -m multiport --dports 8000 ",
        ),
        ("refused", "refused, although it listened there", "iptables"),
        ("no route", "no route there", "on b: ip route get 10.0.0.1"),
        ("unknown name", "the name is not known there", "on b: getent hosts 10.0.0.1"),
        ("stranger", "something else answers", "`hosts: {a: {address: ...}}`"),
        ("stuck there", "those of b with its MTU of 1500 do not", "on b: sudo ip link set eth0 mtu 1400"),
        ("stuck back", "those of a with its MTU of 1500 do not", "on a: sudo ip link set eth0 mtu 1400"),
    ],
)
def test_a_port_that_is_not_reached(outcome: str, why: str, remedy: str):
    (finding,) = worst(check_connections(met(outcome)))
    assert (finding.level, finding.host) == ("error", "a")
    assert finding.text.startswith("b (10.0.0.2) does not reach 10.0.0.1 on 8000: ")
    assert why in finding.text
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("firewall", "remedy"),
    [
        ("ufw", "sudo ufw allow proto tcp from 10.0.0.2 to any port 8000,32768:60999"),
        (
            "firewalld",
            "sudo firewall-cmd --permanent --add-port=8000/tcp --add-port=32768-60999/tcp"
            " && sudo firewall-cmd --reload",
        ),
    ],
)
def test_the_command_of_the_host_s_own_firewall(firewall: str, remedy: str):
    facts = met(firewall=firewall)
    silent = Meeting.model_validate({"visits": [("a", 8000, "silent"), ("a", SPARE, "silent")]})
    facts = replace(facts, meetings={**facts.meetings, "b": silent})
    assert [finding.remedy for finding in worst(check_connections(facts))] == [remedy]


def test_a_port_that_could_not_be_listened_on_is_no_matter_of_the_network():
    facts = met("refused")
    deaf = Meeting.model_validate({"deaf": [(8000, "Address already in use")], "visits": [("b", SPARE, "met")]})
    facts = replace(facts, meetings={**facts.meetings, "a": deaf})
    assert shown(iter(worst(check_connections(facts)))) == [
        "error a: cannot listen on port 8000 of 10.0.0.1: Address already in use"
    ]


def test_a_host_that_did_not_come():
    facts = met()
    facts = replace(
        facts, meetings={"b": facts.meetings["b"]}, not_met={"a": StepTimeoutError("host a: `meet` did not finish")}
    )
    assert shown(check_connections(facts)) == [
        "error a: whether it reaches the others is not known: `meet` did not finish"
    ]
