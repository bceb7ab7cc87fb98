"""Blocks have owners; what is full stays until its space is needed; the least recently used goes first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.block_manager import BlockManager

BLOCK_SIZE = 2


def fill(manager: BlockManager, tokens: list[int]) -> list[int]:
    """Allocate and commit blocks for `tokens`."""
    blocks = manager.allocate(-(-len(tokens) // BLOCK_SIZE))
    manager.commit(tokens, blocks, 0, len(tokens))
    return blocks


def find(manager: BlockManager, tokens: list[int]) -> list[int]:
    """Look up without keeping a reference."""
    blocks = manager.match(tokens, len(tokens) // BLOCK_SIZE)
    manager.release(blocks)
    return blocks


def test_blocks_are_given_out_once() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    blocks = manager.allocate(3)
    assert len(set(blocks)) == 3
    assert manager.num_free == 1
    with pytest.raises(RuntimeError, match="2 blocks wanted, 1 free"):
        manager.allocate(2)
    manager.release(blocks)
    assert manager.num_free == 4


def test_a_block_is_free_after_its_last_owner_only() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    blocks = manager.allocate(1)
    assert not manager.is_shared(blocks[0])
    manager.share(blocks)
    assert manager.is_shared(blocks[0])
    manager.release(blocks)
    assert manager.num_free == 1
    manager.release(blocks)
    assert manager.num_free == 2
    with pytest.raises(RuntimeError, match="released more often than taken"):
        manager.release(blocks)


def test_full_blocks_are_found_after_release_and_partial_ones_are_not() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    blocks = fill(manager, [1, 2, 3, 4, 5])
    manager.release(blocks)
    assert manager.num_free == 4
    assert find(manager, [1, 2, 3, 4, 5, 6]) == blocks[:2]


def test_a_matched_block_is_owned() -> None:
    manager = BlockManager(1, BLOCK_SIZE)
    manager.release(fill(manager, [1, 2]))
    assert manager.num_free == 1
    blocks = manager.match([1, 2], 1)
    assert manager.num_free == 0
    manager.check([blocks])


def test_the_least_recently_used_is_evicted_first_and_free_blocks_before_it() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    for tokens in ([1, 1], [2, 2], [3, 3]):
        manager.release(fill(manager, tokens))
    find(manager, [1, 1])
    manager.allocate(1)
    assert all(find(manager, tokens) for tokens in ([2, 2], [3, 3], [1, 1]))
    manager.allocate(1)
    assert not find(manager, [2, 2])
    assert find(manager, [1, 1])
    manager.allocate(1)
    assert not find(manager, [3, 3])
    assert find(manager, [1, 1])


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    blocks = fill(manager, [1, 2, 3, 4, 5, 6])
    manager.release(blocks)
    manager.allocate(1)
    assert find(manager, [1, 2, 3, 4, 5, 6]) == blocks[:2]


def test_a_twin_of_a_cached_block_is_not_kept() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    one, twin = fill(manager, [1, 2]), fill(manager, [1, 2])
    manager.release(twin)
    manager.release(one)
    manager.allocate(3)  # the twin among them, as it was plainly free
    assert find(manager, [1, 2]) == one


def test_a_block_that_was_a_twin_is_not_taken_for_what_it_held() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    one, twin = fill(manager, [1, 2]), fill(manager, [1, 2])
    manager.release(twin)
    manager.release(one)
    manager.release(manager.allocate(2))  # overwritten, with nothing that is worth keeping
    assert find(manager, [1, 2]) == []


def test_the_beginning_of_a_prefix_stays_as_long_as_its_end_though_only_a_twin_of_it_was_in_use() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    one, longer = fill(manager, [1, 2]), fill(manager, [1, 2, 3, 4])
    manager.release(one)
    manager.release(fill(manager, [9, 9]))
    manager.release(longer)
    manager.allocate(2)  # the twin, which was free, and the block that is not of the prefix
    assert find(manager, [9, 9]) == []
    assert find(manager, [1, 2, 3, 4]) == [*one, longer[1]]
    manager.allocate(1)
    assert find(manager, [1, 2, 3, 4]) == one  # the end went first


def test_nothing_is_kept_without_prefix_caching() -> None:
    manager = BlockManager(2, BLOCK_SIZE, prefix_caching=False)
    manager.release(fill(manager, [1, 2]))
    assert find(manager, [1, 2]) == []
    manager.check([])


def test_check_finds_lost_and_unowned_blocks() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    blocks = manager.allocate(1)
    manager.check([blocks])
    with pytest.raises(RuntimeError, match="1 references, 0 of them known"):
        manager.check([])
    with pytest.raises(RuntimeError, match="1 references, 2 of them known"):
        manager.check([blocks, blocks])


@settings(deadline=None)
@given(num_blocks=st.integers(1, 12), caching=st.booleans(), data=st.data())
def test_owners_keep_their_blocks_and_their_contents(num_blocks: int, caching: bool, data: st.DataObject) -> None:
    manager = BlockManager(num_blocks, BLOCK_SIZE, prefix_caching=caching)
    contents: dict[int, list[int]] = {}  # block: all tokens up to its end, when it was filled last
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 15))):
        action = data.draw(st.sampled_from(["fill", "share", "release"]))
        if action == "fill":
            tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=9))
            matched = manager.match(tokens, len(tokens) // BLOCK_SIZE)
            for index, block in enumerate(matched):
                assert contents[block] == tokens[: (index + 1) * BLOCK_SIZE]
            missing = -(-len(tokens) // BLOCK_SIZE) - len(matched)
            if missing > manager.num_free:
                manager.release(matched)
                continue
            fresh = manager.allocate(missing)
            assert not {block for table in tables for block in table} & set(fresh)
            table = matched + fresh
            contents.update({block: tokens[: (index + 1) * BLOCK_SIZE] for index, block in enumerate(table)})
            manager.commit(tokens, table, len(matched) * BLOCK_SIZE, len(tokens))
            tables.append(table)
        elif tables:
            table = data.draw(st.sampled_from(tables))
            if action == "share":
                manager.share(table)
                tables.append(list(table))
            else:
                tables.remove(table)
                manager.release(table)
        manager.check(tables)
        assert manager.num_free == num_blocks - len({block for table in tables for block in table})
