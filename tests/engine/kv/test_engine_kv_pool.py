import mmap
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.pool import KVLayout, KVPool, available_memory, num_blocks_for
from tests.engine.memory_files import memory_files

LAYOUT = KVLayout(num_kv_heads=3, num_layers=2, block_size=16, head_dim=8, dtype=torch.float32)


def test_block_is_one_contiguous_run():
    pool = KVPool(LAYOUT, num_blocks=5)
    assert pool.tensor.shape == (5, 3, 2, 2, 16, 8)
    assert pool.tensor.stride(0) * 4 == LAYOUT.block_bytes == 3 * 2 * 2 * 16 * 8 * 4
    assert pool.nbytes == 5 * LAYOUT.block_bytes
    assert pool.fd is None
    assert not pool.tensor.any()


def test_shared_pool_is_seen_through_its_descriptor():
    pool = KVPool(LAYOUT, num_blocks=4, shared=True)
    pool.tensor[2, 1, 0, 1, 3] = 7.0
    with open(f"/proc/{os.getpid()}/fd/{pool.fd}", "r+b") as file:
        other = torch.frombuffer(mmap.mmap(file.fileno(), pool.nbytes), dtype=torch.float32)
    assert other.view(4, *LAYOUT.block_shape)[2, 1, 0, 1, 3].tolist() == [7.0] * 8
    other.zero_()
    assert not pool.tensor.any()
    pool.close()


def test_nothing_is_left_of_a_shared_pool():
    before = memory_files(os.getpid())
    pool = KVPool(LAYOUT, num_blocks=4, shared=True)
    assert len(memory_files(os.getpid()) - before) == 1
    pool.close()
    pool.close()
    assert pool.fd is None
    assert not pool.tensor.any()  # the mapping lives as long as the tensor
    del pool
    assert memory_files(os.getpid()) == before


def test_descriptor_is_not_inherited():
    pool = KVPool(LAYOUT, num_blocks=1, shared=True)
    assert pool.fd is not None
    assert not os.get_inheritable(pool.fd)
    pool.close()


@pytest.mark.parametrize("shared", [False, True])
def test_too_large_a_pool_names_the_sizes(shared):
    before = memory_files(os.getpid())
    blocks = 2 * available_memory() // LAYOUT.block_bytes
    with pytest.raises(MemoryError, match=rf"{blocks} KV blocks need [\d,]+ MiB, [\d,]+ MiB are available"):
        KVPool(LAYOUT, blocks, shared)
    assert memory_files(os.getpid()) == before


def test_describe_is_plain_and_tells_layouts_apart():
    assert LAYOUT.describe() == {
        "num_kv_heads": 3,
        "num_layers": 2,
        "block_size": 16,
        "head_dim": 8,
        "dtype": "float32",
    }


@given(
    available=st.integers(0, 2**42),
    seqs=st.integers(1, 1000),
    length=st.integers(1, 200_000),
    fraction=st.floats(0.01, 1.0),
)
def test_num_blocks_is_bounded_by_memory_and_by_use(available, seqs, length, fraction):
    blocks = num_blocks_for(
        LAYOUT, available_bytes=available, max_num_seqs=seqs, max_model_len=length, fraction=fraction
    )
    one_sequence = -(-length // 16)
    assert one_sequence <= blocks <= one_sequence * seqs
    assert blocks == one_sequence or blocks * LAYOUT.block_bytes <= available * fraction
