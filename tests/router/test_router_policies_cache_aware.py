"""cache_aware follows what engines hold, and piles nothing up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.engines.instance import Instance, Registration
from pdctl.router.engines.load import Load
from pdctl.router.engines.prefix_index import CHUNK_BYTES, PrefixIndex
from pdctl.router.policies import make_policy
from pdctl.router.policies.base import Policy
from pdctl.router.requests.ask import Ask
from pdctl.router.settings import Limits, Role

ROLES: list[Role] = ["prefill", "decode", "mixed"]
ANSWER = 256  # tokens for which each request counts where answers are generated


def instances(count: int, role: Role = "prefill") -> list[Instance]:
    return [
        Instance(Registration(role=role, host_ip="127.0.0.1", port=port), Limits(), Load())
        for port in range(1, count + 1)
    ]


def prompt(text: bytes, chunks: int) -> bytes:
    return text * (chunks * CHUNK_BYTES // len(text))


def ask(text: bytes, chunks: int) -> Ask:
    return Ask(64 * chunks, prompt=prompt(text, chunks))


def choose(policy: Policy, index: PrefixIndex, candidates: list[Instance], request: Ask) -> Instance:
    """Choose as the router does: the index is told of the assignment, not by the choice."""
    chosen = policy.choose(candidates, request)
    index.assigned(chosen.key, request.prefix)
    return chosen


def work(instance: Instance) -> int:
    answers = 0 if instance.registration.role == "prefill" else ANSWER
    return instance.load.tokens + answers * instance.load.requests


async def test_what_is_left_to_compute_is_the_part_after_the_held_chunks():
    some = Ask(1000, prompt=b"x" * (4 * CHUNK_BYTES))
    assert [some.uncached(matched) for matched in range(5)] == [1000, 750, 500, 250, 0]
    assert Ask(10, prompt=b"x" * 100).uncached(0) == 10
    assert Ask(1000, prompt=b"x" * (CHUNK_BYTES * 3 // 2)).uncached(1) == 334  # a part of a chunk has no key


@pytest.mark.parametrize("role", ROLES)
async def test_a_prompt_returns_to_the_engine_that_had_it(role: Role):
    index = PrefixIndex()
    candidates, policy = instances(4, role), make_policy("cache_aware", index)
    homes = {}
    for _ in range(3):
        for text in (b"aa", b"bb", b"cc", b"dd", b"ee"):
            instance = choose(policy, index, candidates, ask(text, 8))
            assert homes.setdefault(text, instance) is instance
            instance.load.add(512)
            instance.load.remove(512)
    assert set(homes.values()) == set(candidates)


async def test_a_conversation_stays_as_it_grows():
    index = PrefixIndex()
    candidates, policy = instances(3), make_policy("cache_aware", index)
    first = choose(policy, index, candidates, ask(b"turn", 2))
    first.load.add(128)
    first.load.remove(128)
    for chunks in (4, 8, 40):
        assert choose(policy, index, candidates, ask(b"turn", chunks)) is first


async def test_what_an_engine_publishes_outweighs_what_it_was_assigned():
    index = PrefixIndex()
    (first, second), policy = instances(2), make_policy("cache_aware", index)
    shared = ask(b"system prompt   ", 8)
    index.reset(first.key, shared.prefix)
    assert choose(policy, index, [second, first], shared) is first
    index.update(first.key, [], shared.prefix)  # evicted
    index.check(100.0, [first.key, second.key])
    index.check(200.0, [first.key, second.key])
    first.load.add(1)
    first.load.remove(1)
    assert policy.choose([first, second], shared) is second


@pytest.mark.parametrize(("in_flight", "holder_is_chosen"), [(319, True), (321, False)])
async def test_a_hit_is_worth_its_tokens_and_no_more(in_flight: int, holder_is_chosen: bool):
    index = PrefixIndex()
    holder, idle = instances(2)
    shared = ask(b"abcd", 10)
    index.reset(holder.key, shared.prefix[:5])  # saves half of 640 tokens
    holder.load.add(in_flight)
    chosen = make_policy("cache_aware", index).choose([idle, holder], shared)
    assert (chosen is holder) == holder_is_chosen


async def test_short_answers_and_long_ones_count_on_decode():
    crowded, free = instances(2, "decode")
    for _ in range(20):
        crowded.load.add(10)
    free.load.add(1000)
    assert make_policy("cache_aware", PrefixIndex()).choose([crowded, free], Ask(10)) is free


async def test_equal_prompts_that_none_has_finished_spread_over_all_engines():
    """What happened in sglang#27547: long prompts, nothing ends, and all of them went to one engine."""
    index = PrefixIndex()
    candidates, policy = instances(4), make_policy("cache_aware", index)
    shared = ask(b"the same", 100)
    for count in range(1, 41):
        choose(policy, index, candidates, shared).load.add(shared.tokens)
        tokens = [i.load.tokens for i in candidates]
        assert max(tokens) - min(tokens) <= 2 * shared.tokens, count
    assert min(i.load.requests for i in candidates) >= 8


@given(
    role=st.sampled_from(ROLES),
    count=st.integers(2, 5),
    steps=st.lists(
        st.tuples(st.sampled_from([b"aa", b"bb", b"cc"]), st.integers(0, 12), st.floats(0, 1), st.booleans()),
        max_size=60,
    ),
)
async def test_the_choice_never_has_more_than_the_least_loaded_and_this_prompt(
    role: Role, count: int, steps: list[tuple[bytes, int, float, bool]]
):
    index = PrefixIndex()
    candidates, policy = instances(count, role), make_policy("cache_aware", index)
    running: list[tuple[Instance, int]] = []
    for text, chunks, which, ends in steps:
        request = ask(text, chunks)
        least = min(work(i) for i in candidates)
        chosen = choose(policy, index, candidates, request)
        assert work(chosen) <= least + request.tokens
        chosen.load.add(request.tokens)
        running.append((chosen, request.tokens))
        if ends:
            instance, tokens = running.pop(int(which * (len(running) - 1)))
            instance.load.remove(tokens)
