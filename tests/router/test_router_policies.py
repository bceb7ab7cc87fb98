"""Policies choose by load, and load counts what was assigned and has not ended."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pdctl
from pdctl.router.engines.instance import Instance, Registration, Reported
from pdctl.router.engines.load import Load
from pdctl.router.engines.prefix_index import PrefixIndex
from pdctl.router.policies import NAMES, make_policy
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask
from pdctl.router.settings import Limits
from pdctl.topology import router as topology_router

ASK = Ask(100)
LOAD_AWARE = ["cache_aware", "metrics_score", "process_tokens", "request_num", "session_affinity"]


def instances(count: int) -> list[Instance]:
    return [
        Instance(Registration(role="mixed", host_ip="127.0.0.1", port=port), Limits(), Load())
        for port in range(1, count + 1)
    ]


def policy(name: str) -> Policy:
    return make_policy(name, PrefixIndex())


def count_choices(chooser: Policy, candidates: list[Instance], requests: int) -> Counter[str]:
    """Each request ends before the next comes."""
    chosen = Counter()
    for _ in range(requests):
        instance = chooser.choose(candidates, ASK)
        instance.load.add(ASK.tokens)
        instance.load.remove(ASK.tokens)
        chosen[instance.key] += 1
    return chosen


def test_the_names_are_those_of_the_topology():
    assert get_args(topology_router.Policy) == NAMES
    assert len(NAMES) == 8


def test_naming_the_policies_does_not_import_the_router():
    script = "import sys; import pdctl.router.policies as p; print(*[m for m in sys.modules if m.startswith('pdctl.')])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.split() == ["pdctl.router", "pdctl.router.policies"]


@pytest.mark.parametrize("name", NAMES)
async def test_every_policy_takes_the_only_candidate_and_one_of_several(name: str):
    candidates, chooser = instances(5), policy(name)
    for count in (1, 5, 3, 2):
        for session in (b"", b"s"):
            ask = Ask(100, session, b"x" * 600)
            assert chooser.choose(candidates[:count], ask) in candidates[:count]


async def test_process_tokens_takes_the_fewest_tokens_and_not_the_fewest_requests():
    few, many = instances(2)
    few.load.add(5000)
    for _ in range(10):
        many.load.add(10)
    assert policy("process_tokens").choose([few, many], ASK) is many


@pytest.mark.parametrize("name", ["request_num", "power_of_two", "session_affinity", "metrics_score"])
async def test_request_num_and_its_like_take_the_fewest_requests_and_not_the_fewest_tokens(name: str):
    few, many = instances(2)
    few.load.add(5000)
    for _ in range(10):
        many.load.add(10)
    assert policy(name).choose([few, many], ASK) is few


@pytest.mark.parametrize("name", [*LOAD_AWARE, "round_robin"])
async def test_idle_equals_take_turns(name: str):
    assert set(count_choices(policy(name), instances(3), 30).values()) == {10}


@pytest.mark.parametrize("name", LOAD_AWARE)
async def test_an_engine_that_joins_late_takes_its_turn_and_no_more(name: str):
    (*old, new), chooser = instances(3), policy(name)
    count_choices(chooser, old, 100)
    assert set(count_choices(chooser, [*old, new], 30).values()) == {10}


@given(loads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500)), min_size=1, max_size=6))
@pytest.mark.parametrize("name", ["process_tokens", "request_num"])
async def test_the_choice_is_the_least_loaded_and_of_equals_the_one_that_waited_longest(
    name: str, loads: list[tuple[int, int]]
):
    candidates = instances(len(loads))
    for instance, (requests, tokens) in zip(candidates, loads, strict=True):
        for _ in range(requests):
            instance.load.add(tokens)
    measure = "tokens" if name == "process_tokens" else "requests"
    best = min(candidates, key=lambda i: (getattr(i.load, measure), i.load.turn))
    assert policy(name).choose(candidates, ASK) is best


@pytest.mark.parametrize("name", ["random", "power_of_two"])
async def test_random_choices_take_every_one(name: str):
    candidates, chooser = instances(3), policy(name)
    assert {chooser.choose(candidates, ASK).key for _ in range(200)} == {i.key for i in candidates}


async def test_power_of_two_compares_two_distinct_ones():
    candidates, chooser = instances(3), policy("power_of_two")
    candidates[1].load.add(1)
    chosen = Counter(chooser.choose(candidates, ASK).key for _ in range(300))
    assert chosen[candidates[1].key] == 0  # whichever is compared with it has fewer
    assert min(chosen[candidates[0].key], chosen[candidates[2].key]) > 100


async def test_power_of_two_gives_a_tie_to_the_one_that_waited_longer():
    first, second = instances(2)
    first.load.add(1)
    second.load.add(1)
    assert all(policy("power_of_two").choose([first, second], ASK) is first for _ in range(50))


async def test_a_session_stays_and_sessions_spread():
    candidates, chooser = instances(4), policy("session_affinity")
    chosen = Counter()
    for number in range(400):
        ask = Ask(1, b"session-%d" % number)
        instance = chooser.choose(candidates, ask)
        assert all(chooser.choose(list(reversed(candidates)), ask) is instance for _ in range(3))
        chosen[instance.key] += 1
    assert min(chosen.values()) > 60
    assert len(chosen) == 4


async def test_an_engine_that_leaves_moves_only_its_own_sessions():
    candidates, chooser = instances(4), policy("session_affinity")
    for number in range(200):
        ask = Ask(1, b"session-%d" % number)
        before = chooser.choose(candidates, ask)
        after = chooser.choose(candidates[:3], ask)
        assert after is before or before is candidates[3]


async def homes() -> str:
    candidates, chooser = instances(5), policy("session_affinity")
    return " ".join(chooser.choose(candidates, Ask(1, b"%d" % n)).key for n in range(50))


def test_every_worker_process_finds_a_session_at_the_same_engine():
    script = "import asyncio, test_router_policies as t; print(asyncio.run(t.homes()))"
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(pdctl.__file__).parents[1])},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(found[0].split()) == 50


async def test_a_session_leaves_an_overloaded_engine_for_the_next_in_its_order():
    candidates, chooser = instances(4), policy("session_affinity")
    ask = Ask(1, b"a session")
    home = chooser.choose(candidates, ask)
    for _ in range(16):  # of 16 in all: 2 * 17 / 4 + 8 may be there
        home.load.add(1)
    assert chooser.choose(candidates, ask) is home
    home.load.add(1)
    assert chooser.choose(candidates, ask) is chooser.choose([i for i in candidates if i is not home], ask)
    home.load.remove(1)
    assert chooser.choose(candidates, ask) is home


@given(loads=st.lists(st.integers(0, 60), min_size=2, max_size=6), session=st.binary(min_size=1, max_size=8))
async def test_a_session_never_goes_to_an_overloaded_engine(loads: list[int], session: bytes):
    candidates, chooser = instances(len(loads)), policy("session_affinity")
    for instance, requests in zip(candidates, loads, strict=True):
        for _ in range(requests):
            instance.load.add(1)
    chosen = chooser.choose(candidates, Ask(1, session))
    limit = 2 * (sum(loads) + 1) / len(loads) + 8
    assert chosen.load.requests < limit
    home = chooser.choose(instances(len(loads)), Ask(1, session))
    if candidates[home.registration.port - 1].load.requests < limit:
        assert chosen.key == home.key  # it stays where it is at home, busy or not


def report(instance: Instance, running: float, waiting: float) -> None:
    instance.reported = Reported(running, waiting, instance.load.requests, 0.0)


async def test_metrics_score_counts_a_waiting_request_as_four():
    running, waiting = instances(2)
    report(running, 3, 0)
    report(waiting, 0, 1)
    assert policy("metrics_score").choose([waiting, running], ASK) is running
    report(running, 5, 0)
    assert policy("metrics_score").choose([waiting, running], ASK) is waiting


async def test_metrics_score_counts_what_was_assigned_since_the_report():
    candidates, chooser = instances(3), policy("metrics_score")
    for instance, running in zip(candidates, (0, 2, 6), strict=True):
        report(instance, running, 0)
    for _ in range(10):  # no report in between: all would go to one
        chooser.choose(candidates, ASK).load.add(1)
    assert [i.load.requests for i in candidates] == [6, 4, 0]


async def test_metrics_score_takes_its_own_count_where_nothing_is_reported():
    silent, reporting = instances(2)
    for _ in range(3):
        silent.load.add(1)
    report(reporting, 2, 0)
    assert policy("metrics_score").choose([silent, reporting], ASK) is reporting
    report(reporting, 4, 0)
    assert policy("metrics_score").choose([silent, reporting], ASK) is silent


@given(st.lists(st.integers(1, 10_000), max_size=20), st.data())
def test_load_is_the_sum_of_what_has_not_ended(work: list[int], data: st.DataObject):
    load = Load()
    for tokens in work:
        load.add(tokens)
    ended = data.draw(st.integers(0, len(work)))
    for tokens in work[:ended]:
        load.remove(tokens)
    assert (load.requests, load.tokens, load.assigned) == (len(work) - ended, sum(work[ended:]), len(work))
