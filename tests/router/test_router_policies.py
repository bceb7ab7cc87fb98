"""Policies choose by load, and load is given back exactly once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.instance import Instance, Registration
from pdctl.router.load import Assignment, Load
from pdctl.router.policies import POLICIES
from pdctl.router.settings import Limits


def instances(count: int) -> list[Instance]:
    return [
        Instance(Registration(role="mixed", host_ip="127.0.0.1", port=port), Limits()) for port in range(1, count + 1)
    ]


async def test_process_tokens_takes_the_fewest_tokens_and_not_the_fewest_requests():
    few, many = instances(2)
    Assignment(few.load, 5000)
    for _ in range(10):
        Assignment(many.load, 10)
    assert POLICIES["process_tokens"]().choose([few, many]) is many


async def test_request_num_takes_the_fewest_requests_and_not_the_fewest_tokens():
    few, many = instances(2)
    Assignment(few.load, 5000)
    for _ in range(10):
        Assignment(many.load, 10)
    assert POLICIES["request_num"]().choose([few, many]) is few


@pytest.mark.parametrize("name", ["process_tokens", "request_num", "round_robin"])
async def test_idle_equals_take_turns(name: str):
    candidates, policy = instances(3), POLICIES[name]()
    chosen = Counter()
    for _ in range(30):
        instance = policy.choose(candidates)
        Assignment(instance.load, 10).release()
        chosen[instance.key] += 1
    assert set(chosen.values()) == {10}


@pytest.mark.parametrize("name", ["process_tokens", "request_num"])
async def test_an_engine_that_joins_late_takes_its_turn_and_no_more(name: str):
    (*old, new), policy = instances(3), POLICIES[name]()
    for _ in range(100):
        Assignment(policy.choose(old).load, 10).release()
    chosen = Counter()
    for _ in range(30):
        instance = policy.choose([*old, new])
        Assignment(instance.load, 10).release()
        chosen[instance.key] += 1
    assert set(chosen.values()) == {10}


async def test_random_takes_every_one():
    candidates, policy = instances(3), POLICIES["random"]()
    assert {policy.choose(candidates).key for _ in range(200)} == {i.key for i in candidates}


async def test_round_robin_survives_a_shrinking_list():
    candidates, policy = instances(3), POLICIES["round_robin"]()
    for count in (3, 2, 1, 3):
        assert policy.choose(candidates[:count]) in candidates


@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 3)), max_size=20))
def test_load_is_the_sum_of_what_is_not_released(work: list[tuple[int, int]]):
    load = Load()
    assignments = [(Assignment(load, tokens), releases) for tokens, releases in work]
    assert (load.requests, load.tokens) == (len(work), sum(tokens for tokens, _ in work))
    for assignment, releases in assignments:
        for _ in range(releases):
            assignment.release()
    assert (load.requests, load.tokens, load.assigned) == (0, 0, len(work))
