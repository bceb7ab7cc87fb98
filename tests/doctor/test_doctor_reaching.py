"""Hosts that do not answer, and clocks that are wrong."""

from dataclasses import replace

import pytest
from doctor_samples import make_facts, make_host, shown, two_hosts, worst

from pdctl.doctor.checks.placement import check_placement
from pdctl.doctor.checks.reaching import check_clocks, check_reached
from pdctl.errors import HostUnreachableError, PdctlError, PlanError, StepTimeoutError


@pytest.mark.parametrize(
    ("error", "text", "remedy"),
    [
        (HostUnreachableError("host b: `ssh b`: No route to host"), "`ssh b`: No route to host", "ssh -v b true"),
        (StepTimeoutError("host b: `probe` did not finish in 30 s"), "`probe` did not finish in 30 s", "ssh -v b true"),
        (PdctlError("host b: no Python 3.9 or newer"), "no Python 3.9 or newer", ""),
    ],
)
def test_a_host_that_does_not_answer_is_a_finding(error: PdctlError, text: str, remedy: str):
    facts = make_facts(*two_hosts(), planned=False)
    facts = replace(facts, hosts={"a": facts.hosts["a"]}, silent={"b": error})
    assert shown(check_reached(facts)) == ["ok a: `ssh a` works", f"error b: {text}"]
    assert worst(check_reached(facts))[0].remedy == remedy
    assert shown(check_placement(facts)) == ["warning : not known without b"]


@pytest.mark.parametrize(
    ("asked", "clock", "text"),
    [
        ((1000.0, 1000.4), (1000.1, 1000.3), "ok b: at most 0.1 s apart from this machine's"),
        ((1000.0, 1020.0), (1004.0, 1008.0), "ok b: at most 12.0 s apart from this machine's"),  # a slow answer
        ((1000.0, 1000.4), (1003.1, 1003.3), "warning b: at least 2.9 s ahead of this machine's"),
        ((1000.0, 1000.4), (990.1, 990.3), "warning b: at least 9.9 s behind this machine's"),
    ],
)
def test_a_clock_is_wrong_by_what_the_question_took_no_time_for(
    asked: tuple[float, float], clock: tuple[float, float], text: str
):
    facts = make_facts(make_host(ssh=None), make_host("b", "10.0.0.2", asked=asked, clock=clock))
    assert shown(check_clocks(facts)) == [text]  # and this machine's is right


def test_what_the_hosts_cannot_carry():
    facts = make_facts(*two_hosts())
    assert shown(check_placement(facts)) == ["ok : 3 processes on a, b"]
    assert shown(check_placement(replace(facts, refusal=PlanError("prefill[0]: no GPU")))) == [
        "error : prefill[0]: no GPU"
    ]
