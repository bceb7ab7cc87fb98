"""KV between the memories of two GPUs. What needs GPUs is skipped without them."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from cuda_processes import Engine, GpuPool, engine, gpu_pool, kv
from transfer_harness import within

from engine.errors import TransferError
from engine.transfer.base import Target
from engine.transfer.blocks import Fit, Shard, copies, fit
from engine.transfer.transports.cuda_copy import merged, parts, places
from engine.transfer.transports.cuda_ipc import CudaIpcInlet, CudaIpcTransport, check_reach
from engine.transfer.transports.shm import boot_id

GPUS = torch.cuda.device_count()
needs_gpu = pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")
needs_two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs")

SMALL, LARGE = 64 << 10, 2 << 20  # bytes of a block: copied by the kernel, and by the copy engines
BLOCKS = 64
SECONDS = 60.0  # a process that starts imports torch


def whole(block_bytes: int, blocks: int = BLOCKS) -> Target:
    """All of the blocks of equal pools."""
    return Target("127.0.0.1", blocks, Fit(block_bytes, block_bytes, 0, 0, block_bytes))


def cpu_transport() -> CudaIpcTransport:
    tensor = torch.zeros(4, 64, dtype=torch.uint8)
    return CudaIpcTransport(GpuPool(tensor, tensor.nbytes, b"p" * 16))


async def decode_side(pool: GpuPool) -> CudaIpcInlet:
    transport = CudaIpcTransport(pool)
    await within(transport.start(), SECONDS)
    return transport.open_inlet()


async def connected(prefill: Engine, inlet: CudaIpcInlet, target: Target) -> None:
    await prefill.does("start")
    assert await prefill.does("connect", inlet.offer, target) == "connected"


def changed(offer: bytes, **changes: Any) -> bytes:
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(offer), **changes})


# What is copied


@pytest.mark.parametrize(
    "shape", [Fit(64, 64, 0, 0, 64), Fit(64, 128, 0, 32, 64), Fit(128, 64, 64, 0, 64), Fit(128, 128, 32, 32, 32)]
)
def test_runs_are_those_of_the_other_transports(shape: Fit):
    for _ in range(50):
        source = sorted(random.sample(range(20), 12), key=lambda block: (block // 4, random.random() > 0.8))
        target = [block + 1 for block in source]
        runs = merged(places(source, target, shape, 32, 32))
        assert list(zip(*(array.tolist() for array in runs), strict=True)) == copies(source, target, shape)


@pytest.mark.parametrize("block_bytes", [48, SMALL, LARGE, 1 << 30])
@pytest.mark.parametrize("blocks", [0, 1, 1000])
def test_the_parts_of_a_push_are_all_of_it(blocks: int, block_bytes: int):
    everything = list(range(blocks))
    cut = [everything[part] for part in parts(blocks, block_bytes)]
    assert [block for part in cut for block in part] == everything
    assert all(cut)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ([0, 8], [0, 1], "prefill has 8 KV blocks: there is no block 0 or 8"),
        ([-1, 1], [0, 1], "prefill has 8 KV blocks: there is no block -1 or 1"),
        ([0, 7], [2, 4], "decode has 4 KV blocks: there is no block 2 or 4"),
        ([0], [], "1 blocks cannot be copied to 0 places"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(source: list[int], target: list[int], reason: str):
    with pytest.raises(TransferError, match=reason):
        places(source, target, Fit(64, 64, 0, 0, 64), own_blocks=8, peer_blocks=4)


# Who is refused before anything is mapped


@pytest.mark.parametrize("peer", ["GPU-own", "GPU-near", "GPU-unseen"])
def test_a_gpu_that_may_be_reached_is_tried(peer: str):
    check_reach("GPU-own", peer, {"GPU-own": 0, "GPU-near": 1}, lambda device: device == 1)


def test_a_gpu_without_peer_access_is_refused():
    with pytest.raises(TransferError, match="GPU-own has no peer access to GPU-far"):
        check_reach("GPU-own", "GPU-far", {"GPU-own": 0, "GPU-near": 1, "GPU-far": 2}, lambda device: device == 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boot_id": "another"}, "another host"),
        ({"socket": 5}, "its GPU memory offer is malformed"),
        ({"gpu": None}, "its GPU memory offer is malformed"),
    ],
)
async def test_an_offer_that_does_not_fit_is_refused(change: dict[str, Any], reason: str):
    good = {"boot_id": boot_id(), "socket": "s", "key": b"k" * 32, "gpu": "GPU-0", "probe": b"p" * 16}
    with pytest.raises(TransferError, match=reason):
        await cpu_transport().connect(msgspec.msgpack.encode({**good, **change}), whole(64))


async def test_blocks_that_the_kernel_cannot_copy_are_refused():
    offer = {"boot_id": boot_id(), "socket": "s", "key": b"k" * 32, "gpu": "GPU-0", "probe": b"p" * 16}
    with pytest.raises(TransferError, match="multiples of 16 bytes"):
        await cpu_transport().connect(msgspec.msgpack.encode(offer), whole(72))


async def test_a_pool_in_the_hosts_memory_is_refused():
    with pytest.raises(TransferError, match="not in a GPU's memory"):
        await cpu_transport().start()


# With one GPU


@needs_gpu
async def test_a_pool_without_a_probe_is_refused():
    pool = gpu_pool("cuda:0", 4, SMALL)
    pool.probe = b"another's probe!"
    with pytest.raises(ValueError, match="no probe behind its last block"):
        await within(CudaIpcTransport(pool).start(), SECONDS)


@needs_gpu
async def test_a_process_does_not_map_its_own_memory():
    transport = CudaIpcTransport(gpu_pool("cuda:0", 4, SMALL))
    await within(transport.start(), SECONDS)
    inlet = transport.open_inlet()
    with pytest.raises(TransferError, match="this very process"):
        await within(transport.connect(inlet.offer, whole(SMALL, 4)), SECONDS)
    await within(inlet.drained())


@needs_gpu
async def test_expandable_segments_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    async with engine("cuda:0", 4, SMALL) as other:
        assert "take expandable_segments:True out of" in await other.does("start")


@needs_gpu
async def test_two_engines_may_share_a_gpu():
    pool = gpu_pool("cuda:0", BLOCKS, SMALL)
    inlet = await decode_side(pool)
    async with engine("cuda:0", BLOCKS, SMALL) as prefill:
        await connected(prefill, inlet, whole(SMALL))
        assert await prefill.does("push", [3], [5]) == SMALL
        assert torch.equal(pool.tensor[5].cpu(), kv(BLOCKS, SMALL)[3])
    await within(inlet.drained())


# With two


@needs_two_gpus
@pytest.mark.parametrize("visible", ["0,1", "0", "1,0"])
@pytest.mark.parametrize("block_bytes", [SMALL, LARGE, 3 * 16])
async def test_any_blocks_go_to_any_places(block_bytes: int, visible: str, monkeypatch: pytest.MonkeyPatch):
    pool, source = gpu_pool("cuda:1", BLOCKS, block_bytes), kv(BLOCKS, block_bytes)
    expected = torch.zeros_like(source)
    inlet = await decode_side(pool)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    async with engine(f"cuda:{visible.split(',').index('0')}", BLOCKS, block_bytes) as prefill:
        await connected(prefill, inlet, whole(block_bytes))
        for size in (0, 1, 2, 7, BLOCKS):
            from_blocks, to_blocks = random.sample(range(BLOCKS), size), random.sample(range(BLOCKS), size)
            assert await prefill.does("push", from_blocks, to_blocks) == size * block_bytes
            expected[to_blocks] = source[from_blocks]
            assert torch.equal(pool.tensor.cpu(), expected)
        in_order = list(range(BLOCKS))  # one run
        await prefill.does("push", in_order, in_order)
        assert torch.equal(pool.tensor.cpu(), source)
        assert await prefill.does("close") == "closed"
    await within(inlet.drained())


@needs_two_gpus
@pytest.mark.parametrize(
    ("prefill_heads", "decode_heads"), [((0, 8), (2, 2)), ((4, 2), (0, 8)), ((0, 4), (2, 4))], ids=str
)
@pytest.mark.parametrize("head_bytes", [SMALL, LARGE // 2])
async def test_heads_that_both_sides_hold_are_copied(
    prefill_heads: tuple[int, int], decode_heads: tuple[int, int], head_bytes: int
):
    ours, theirs = Shard(*decode_heads, head_bytes, 16), Shard(*prefill_heads, head_bytes, 16)
    shape = fit(theirs, ours)
    pool, source = gpu_pool("cuda:1", 16, ours.block_bytes), kv(16, theirs.block_bytes)
    expected = torch.zeros(16, ours.block_bytes, dtype=torch.uint8)
    from_blocks, to_blocks = random.sample(range(16), 9), random.sample(range(16), 9)
    there = slice(shape.target_offset, shape.target_offset + shape.nbytes)
    expected[to_blocks, there] = source[from_blocks, shape.source_offset : shape.source_offset + shape.nbytes]
    inlet = await decode_side(pool)
    async with engine("cuda:0", 16, theirs.block_bytes) as prefill:
        await connected(prefill, inlet, Target("127.0.0.1", 16, shape))
        await prefill.does("push", from_blocks, to_blocks)
        assert torch.equal(pool.tensor.cpu(), expected)
    await within(inlet.drained())


@needs_two_gpus
@pytest.mark.parametrize("block_bytes", [SMALL, LARGE])
async def test_a_push_waits_for_the_kernels_and_a_cancelled_one_ends_first(block_bytes: int):
    pool = gpu_pool("cuda:1", BLOCKS, block_bytes)
    inlet = await decode_side(pool)
    async with engine("cuda:0", BLOCKS, block_bytes) as prefill:
        await connected(prefill, inlet, whole(block_bytes))
        assert await prefill.does("push_what_is_being_computed", 7)
        assert pool.tensor[2].eq(7).all()
        assert await prefill.does("cancel_a_push", 8) == "ended"
        assert pool.tensor[2].eq(8).all()
        assert await prefill.does("push", [1], [3]) == block_bytes
    await within(inlet.drained())


@needs_two_gpus
@pytest.mark.parametrize(("blocks", "block_bytes"), [(6000, SMALL), (200, LARGE)])
async def test_a_push_of_many_parts_brings_all_of_them(blocks: int, block_bytes: int):
    pool, source = gpu_pool("cuda:1", blocks, block_bytes), kv(blocks, block_bytes)
    inlet = await decode_side(pool)
    async with engine("cuda:0", blocks, block_bytes) as prefill:
        await connected(prefill, inlet, whole(block_bytes, blocks))
        from_blocks, to_blocks = random.sample(range(blocks), blocks), random.sample(range(blocks), blocks)
        assert await prefill.does("push", from_blocks, to_blocks) == blocks * block_bytes
        assert torch.equal(pool.tensor[to_blocks].cpu(), source[from_blocks])
    await within(inlet.drained())


@needs_two_gpus
@pytest.mark.parametrize(("blocks", "block_bytes"), [(9000, SMALL), (250, LARGE)])
async def test_pushes_at_once_are_copied_up_to_one_that_is_refused(blocks: int, block_bytes: int):
    pool, source = gpu_pool("cuda:1", blocks, block_bytes), kv(blocks, block_bytes)
    shuffled = random.sample(range(blocks), blocks)
    shares = [shuffled[number::5] for number in range(5)]
    inlet = await decode_side(pool)
    async with engine("cuda:0", blocks, block_bytes) as prefill:
        await connected(prefill, inlet, whole(block_bytes, blocks))
        pushed = await prefill.does("push_at_once", *((share, share) for share in shares))
        assert pushed == [len(share) * block_bytes for share in shares]
        assert torch.equal(pool.tensor.cpu(), source)
        pool.tensor.zero_()
        torch.cuda.synchronize(1)
        pushes = (shares[0], shares[0]), ([blocks], [0]), ([1], [1])
        first, refused, behind = await prefill.does("push_at_once", *pushes)
        assert first == len(shares[0]) * block_bytes
        assert torch.equal(pool.tensor[shares[0]].cpu(), source[shares[0]])
        assert "there is no block" in refused
        assert "an earlier push failed" in behind
    await within(inlet.drained())


@needs_two_gpus
async def test_a_writer_that_has_failed_stays_failed():
    pool = gpu_pool("cuda:1", BLOCKS, SMALL)
    inlet = await decode_side(pool)
    async with engine("cuda:0", BLOCKS, SMALL) as prefill:
        await connected(prefill, inlet, whole(SMALL))
        assert "a copy into its GPU memory failed: out of luck" in await prefill.does("push_but_fail", [1], [2])
        assert "an earlier push failed: out of luck" in await prefill.does("push", [1], [2])
        assert await prefill.does("close") == "closed"
        await within(inlet.drained())
    assert not pool.tensor.any()


@needs_two_gpus
@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [([1], [BLOCKS], "decode has 64 KV blocks"), ([BLOCKS], [1], "prefill has 64"), ([], [1], "0 blocks cannot be")],
)
async def test_nothing_is_written_outside_of_the_pool(source: list[int], target: list[int], reason: str):
    pool = gpu_pool("cuda:1", BLOCKS, SMALL)
    inlet = await decode_side(pool)
    async with engine("cuda:0", BLOCKS, SMALL) as prefill:
        await connected(prefill, inlet, whole(SMALL))
        assert reason in await prefill.does("push", source, target)
        assert await prefill.does("close") == "closed"
        await within(inlet.drained())
    assert not pool.tensor.any()


@needs_two_gpus
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": b"k" * 32}, "did not hand out its memory"),
        ({"probe": b"x" * 16}, "its GPU memory is not the pool that it offered"),
        ({"socket": "pdctl-kv-nobody"}, "one host, but other network namespaces"),
    ],
)
async def test_an_offer_that_is_not_ours_maps_nothing(change: dict[str, Any], reason: str):
    inlet = await decode_side(gpu_pool("cuda:1", BLOCKS, SMALL))
    async with engine("cuda:0", BLOCKS, SMALL) as prefill:
        await prefill.does("start")
        assert reason in await prefill.does("connect", changed(inlet.offer, **change), whole(SMALL))
    await within(inlet.drained())


@needs_two_gpus
async def test_more_blocks_than_are_mapped_are_refused():
    inlet = await decode_side(gpu_pool("cuda:1", BLOCKS, LARGE))
    async with engine("cuda:0", 1, LARGE) as prefill:
        await prefill.does("start")
        assert "less than 1024 blocks" in await prefill.does("connect", inlet.offer, whole(LARGE, 1024))
    await within(inlet.drained())


@needs_two_gpus
async def test_when_drained_nobody_writes_any_more():
    pool = gpu_pool("cuda:1", BLOCKS, SMALL)
    inlet = await decode_side(pool)
    async with engine("cuda:0", BLOCKS, SMALL) as prefill:
        await connected(prefill, inlet, whole(SMALL))
        drained = asyncio.create_task(inlet.drained())
        assert await prefill.does("push", [1], [2]) == SMALL
        assert not drained.done()
        assert await prefill.does("close") == "closed"
        await within(drained)
        assert "no longer mapped" in await prefill.does("push", [1], [3])
        assert "other network namespaces" in await prefill.does("connect", inlet.offer, whole(SMALL))
    assert not pool.tensor[3].any()


@needs_two_gpus
@pytest.mark.parametrize(("blocks", "block_bytes"), [(8192, SMALL), (256, LARGE)])
async def test_when_a_killed_writer_is_drained_its_copies_have_ended(blocks: int, block_bytes: int):
    pool = gpu_pool("cuda:1", blocks, block_bytes)
    inlet = await decode_side(pool)
    async with engine("cuda:0", blocks, block_bytes) as prefill:
        await connected(prefill, inlet, whole(block_bytes, blocks))
        assert await prefill.does("push_without_end") == "pushing"
        first = pool.tensor[-1].clone()
        await _until(lambda: not torch.equal(pool.tensor[-1], first))  # later pushes bring other bytes
        prefill.kill()
        await within(inlet.drained(), SECONDS)
        left = pool.tensor.clone()
        torch.cuda.synchronize(1)
        pool.tensor.zero_()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert not pool.tensor.any()
        assert left.any()


@needs_two_gpus
async def test_a_decode_engines_death_leaves_prefills_gpu_usable():
    prefill = CudaIpcTransport(gpu_pool("cuda:1", BLOCKS, LARGE))
    await within(prefill.start(), SECONDS)
    blocks = random.sample(range(BLOCKS), BLOCKS)
    async with engine("cuda:0", BLOCKS, LARGE) as decode:
        await decode.does("start")
        writer = await within(prefill.connect(await decode.does("offer"), whole(LARGE)), SECONDS)
        await within(writer.push(blocks, blocks))
        decode.kill()
        for _ in range(100):
            await within(writer.push(blocks, blocks))
    await within(writer.push(blocks, blocks))
    await within(writer.close())
    assert torch.ones(8, device="cuda:1").sum().item() == 8


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
