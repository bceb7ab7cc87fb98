"""The index of prefixes: keys, what is held, and for how long."""

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.engines import prefix_index
from pdctl.router.engines.prefix_index import CHUNK_BYTES, PrefixIndex, prefix_keys
from pdctl.router.requests.ask import Ask

A, B = "10.0.0.1:8000", "10.0.0.2:8000"
KEYS = prefix_keys(bytes(range(256)) * 10)


def keys(start: int, count: int) -> list[bytes]:
    return [number.to_bytes(8) for number in range(start, start + count)]


def test_keys_are_chained_hashes_of_whole_chunks():
    first = blake2b(b"a" * 256, digest_size=8).digest()
    second = blake2b(first + b"b" * 256, digest_size=8).digest()
    assert prefix_keys(b"a" * 256 + b"b" * 256 + b"c" * 255) == [first, second]
    assert prefix_keys(b"a" * 255) == []
    assert prefix_keys(b"") == []


@given(common=st.binary(max_size=1500), one=st.binary(max_size=600), other=st.binary(max_size=600))
def test_keys_are_equal_as_far_as_whole_chunks_are(common: bytes, one: bytes, other: bytes):
    first, second = common + one, common + other
    for number, (key, another) in enumerate(zip(prefix_keys(first), prefix_keys(second), strict=False)):
        end = (number + 1) * CHUNK_BYTES
        assert (key == another) == (first[:end] == second[:end])


def test_a_request_computes_its_keys_once_and_for_a_bounded_part():
    ask = Ask(1, prompt=b"x" * (2 * prefix_index._HISTORY * CHUNK_BYTES))
    assert ask.prefix is ask.prefix
    assert len(ask.prefix) == 1024


def test_what_was_assigned_is_held_up_to_the_first_difference():
    index = PrefixIndex()
    index.assigned(A, KEYS[:6])
    assert index.matched(A, KEYS) == 6
    assert index.matched(A, KEYS[:3]) == 3
    assert index.matched(A, [b"different", *KEYS]) == 0
    assert index.matched(B, KEYS) == 0
    index.forget(A)
    assert index.matched(A, KEYS) == 0


def test_the_history_keeps_what_is_used_and_is_bounded():
    index = PrefixIndex()
    for start in range(0, 200_000, 1000):
        index.assigned(A, KEYS)
        index.assigned(A, keys(start, 1000))
    held = index._held[A]
    assert len(held.newer) + len(held.older) <= prefix_index._HISTORY + 2 * 1024
    assert index.matched(A, KEYS) == len(KEYS)
    assert index.matched(A, keys(199_000, 1000)) == 1000
    assert index.matched(A, keys(0, 1000)) == 0


def test_publishing_replaces_the_history_and_its_end_all_knowledge():
    index = PrefixIndex()
    index.assigned(A, KEYS)
    index.reset(A, KEYS[:2])
    assert index.matched(A, KEYS) == 2
    index.update(A, KEYS[2:5], [])
    assert index.matched(A, KEYS) == 5
    index.update(A, [], [KEYS[1]])
    assert index.matched(A, KEYS) == 1
    index.update(A, [KEYS[1]], [KEYS[1]])
    assert index.matched(A, KEYS) == 5
    index.reset(A, [])
    assert index.matched(A, KEYS) == 0
    index.forget(A)
    index.assigned(A, KEYS)
    assert index.matched(A, KEYS) == len(KEYS)


def test_what_a_publishing_engine_was_just_assigned_is_expected_for_a_while():
    index = PrefixIndex()
    index.reset(A, KEYS[:1])
    index.check(100.0, [A])
    index.assigned(A, KEYS)
    index.check(114.0, [A])
    assert index.matched(A, KEYS) == len(KEYS)
    index.check(115.0, [A])
    index.check(129.0, [A])
    assert index.matched(A, KEYS) == len(KEYS)
    index.check(130.0, [A])
    assert index.matched(A, KEYS) == 1


@pytest.mark.parametrize("ticks", [0, 1])
def test_what_was_expected_and_stored_is_gone_when_it_is_removed(ticks: int):
    index = PrefixIndex()
    index.reset(A, [])
    index.assigned(A, KEYS)
    for _ in range(ticks):
        index.check(0.0, [A])
    index.update(A, KEYS, [])
    index.update(A, [], KEYS[3:])
    assert index.matched(A, KEYS) == 3


def test_what_is_expected_is_bounded():
    index = PrefixIndex()
    index.reset(A, [])
    for start in range(0, 20_000, 10):
        index.assigned(A, keys(start, 10))
    held = index._held[A]
    assert len(held.newer) + len(held.older) <= prefix_index._EXPECTED + 20
    assert index.matched(A, keys(19_990, 10)) == 10


def test_a_history_has_no_age():
    index = PrefixIndex()
    index.assigned(A, KEYS)
    for now in range(0, 10_000, 100):
        index.check(float(now), [A])
    assert index.matched(A, KEYS) == len(KEYS)


def test_engines_that_are_gone_are_forgotten():
    index = PrefixIndex()
    index.assigned(A, KEYS)
    index.reset(B, KEYS)
    index.check(0.0, [B])
    assert (index.matched(A, KEYS), index.matched(B, KEYS)) == (0, len(KEYS))
    index.check(0.0, [])
    assert not index._held


def test_an_engine_that_publishes_too_much_is_refused():
    index = PrefixIndex()
    index.reset(A, keys(0, prefix_index.MAX_PUBLISHED))
    with pytest.raises(ValueError, match="more than 262144 prefix keys"):
        index.update(A, keys(prefix_index.MAX_PUBLISHED, 1), [])


@given(
    st.lists(
        st.tuples(st.sampled_from(["reset", "update"]), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9))),
        max_size=20,
    )
)
def test_published_knowledge_is_what_the_changes_add_up_to(changes: list[tuple[str, set[int], set[int]]]):
    index, held = PrefixIndex(), set()
    index.reset(A, [])
    for kind, stored, removed in changes:
        if kind == "reset":
            index.reset(A, [KEYS[n] for n in stored])
            held = stored
        else:
            index.update(A, [KEYS[n] for n in stored], [KEYS[n] for n in removed])
            held = (held - removed) | stored
    leading = next((n for n in range(10) if n not in held), 10)
    assert index.matched(A, KEYS) == leading
