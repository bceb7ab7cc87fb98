"""The prefix cache finds what it was told of, and nothing else, whatever the hash does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.prefix_cache import ROOT_KEY, PrefixCache, block_key

BLOCK_SIZE = 2


def insert(cache: PrefixCache, tokens: list[int], blocks: list[int]) -> None:
    previous = None
    for index, block in enumerate(blocks):
        cache.insert(block, previous, tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        previous = block


def weak_key(parent: bytes, tokens: list[int]) -> bytes:
    return bytes([sum(tokens) % 2])


def constant_key(parent: bytes, tokens: list[int]) -> bytes:
    return b""


def test_keys_are_the_same_in_every_process() -> None:
    first = block_key(ROOT_KEY, [1, 2, 3, 49151])
    assert first.hex() == "2e35c435dc297ede25fe87f11bc5253b"
    assert block_key(first, [0, 4294967295]).hex() == "c4536d0d72c7e85ace32f26467192310"


def test_longest_known_prefix_is_found() -> None:
    cache = PrefixCache(BLOCK_SIZE)
    insert(cache, [1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert cache.match([1, 2, 3, 4, 9, 9, 5, 6], 4) == [7, 8]
    assert cache.match([1, 2, 3, 4, 5, 6], 3) == [7, 8, 9]
    assert cache.match([1, 2, 3, 4, 5, 6], 2) == [7, 8]
    assert cache.match([3, 4], 1) == []


def test_same_tokens_after_another_beginning_are_not_the_same() -> None:
    cache = PrefixCache(BLOCK_SIZE)
    insert(cache, [1, 1, 5, 5], [0, 1])
    insert(cache, [2, 2], [2])
    assert cache.match([2, 2, 5, 5], 2) == [2]


def test_a_forgotten_block_is_not_found() -> None:
    cache = PrefixCache(BLOCK_SIZE)
    insert(cache, [1, 2, 3, 4], [0, 1])
    cache.forget(0)
    assert cache.match([1, 2, 3, 4], 2) == []


def test_what_follows_a_forgotten_block_is_found_again_when_it_is_back() -> None:
    cache = PrefixCache(BLOCK_SIZE)
    insert(cache, [1, 2, 3, 4], [0, 1])
    cache.forget(0)
    insert(cache, [1, 2], [5])
    assert cache.match([1, 2, 3, 4], 2) == [5, 1]


def test_of_two_blocks_with_the_same_tokens_one_is_kept_and_the_other_takes_its_place() -> None:
    cache = PrefixCache(BLOCK_SIZE)
    insert(cache, [1, 2], [0])
    insert(cache, [1, 2], [1])
    assert cache.found_for(1) == 0
    cache.forget(0)
    assert cache.found_for(1) == 1
    assert cache.match([1, 2], 1) == [1]


def test_equal_keys_after_an_exchanged_parent_do_not_match() -> None:
    cache = PrefixCache(BLOCK_SIZE, weak_key)
    insert(cache, [1, 1, 3, 3], [0, 1])  # both keys are that of an even sum
    cache.forget(0)
    cache.forget(1)
    insert(cache, [1, 1, 3, 4], [0, 1])
    cache.forget(0)
    insert(cache, [2, 2], [2])  # the key of [1, 1]
    assert cache.match([2, 2, 3, 4], 2) == [2]


@pytest.mark.parametrize("key", [block_key, weak_key, constant_key])
@settings(deadline=None)
@given(data=st.data())
def test_matches_hold_exactly_the_tokens_asked_for(key, data: st.DataObject) -> None:
    cache = PrefixCache(BLOCK_SIZE, key)
    token_lists = st.lists(st.integers(0, 2), max_size=8)
    contents: dict[int, list[int]] = {}  # block: all tokens up to its end
    for turn in range(data.draw(st.integers(1, 8))):
        tokens = data.draw(token_lists)
        present = cache.match(tokens, len(tokens) // BLOCK_SIZE)
        for index, block in enumerate(present):
            assert contents[block] == tokens[: (index + 1) * BLOCK_SIZE]
        previous = present[-1] if present else None
        for index in range(len(present), len(tokens) // BLOCK_SIZE):
            block = 100 * turn + index
            cache.insert(block, previous, tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
            contents[block] = tokens[: (index + 1) * BLOCK_SIZE]
            previous = block
        if key is block_key:
            assert len(cache.match(tokens, len(tokens) // BLOCK_SIZE)) == len(tokens) // BLOCK_SIZE
        for block in data.draw(st.lists(st.sampled_from(sorted(contents)), unique=True)) if contents else []:
            cache.forget(block)
            del contents[block]
