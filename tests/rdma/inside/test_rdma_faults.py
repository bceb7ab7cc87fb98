"""NICs, engines and connections that fail while KV is on its way."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rdma_pair import (
    Memory,
    connected,
    counter,
    decode_side,
    link_down,
    moving,
    prefill_side,
    until,
    whole_blocks,
    within,
)

from engine.errors import TransferError
from engine.transfer.transports.rdma import inlet as inlet_module
from engine.transfer.transports.rdma import writer as writer_module
from engine.transfer.transports.rdma.queue_pairs import QueuePair

BLOCK, BLOCKS = 128 << 10, 64
FIT = whole_blocks(BLOCK)
ALL = [*range(0, BLOCKS, 2), *range(1, BLOCKS, 2)]  # no neighbours: a message for each block
LONG = ALL * 10  # the same again and again: still under way when the test does something
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_IB_TIMEOUT", "14")  # 67 ms


async def test_what_a_lost_nic_has_not_carried_goes_over_the_other(caplog: pytest.LogCaptureFixture):
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(LONG, LONG))
        await moving("rxe1")
        with link_down("dummy1"):
            assert not push.done()
            pair.target.bytes[:] = 0
            await within(push)
            assert np.array_equal(pair.target.bytes, pair.source.bytes)
            assert any("rxe1" in record.message and "failed" in record.message for record in caplog.records)
            pair.target.bytes[:] = 0
            await within(pair.writer.push(ALL, ALL))
            assert np.array_equal(pair.target.bytes, pair.source.bytes)


async def test_without_any_nic_left_the_writer_has_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "rxe1")
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(LONG, LONG))
        await moving("rxe1")
        with link_down("dummy1"):
            with pytest.raises(TransferError, match="no NIC is left: rxe1"):
                await within(push)
            with pytest.raises(TransferError, match="no NIC is left: rxe1"):
                await within(pair.writer.push([1], [2]))


async def test_a_writer_that_is_cut_off_writes_nothing_any_more():
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(LONG, LONG))
        await moving("rxe0")
        await within(pair.inlet.drained())
        pair.target.bytes[:] = 0
        assert not push.done()
        with pytest.raises(TransferError):
            await within(push)
        with pytest.raises(TransferError):
            await within(pair.writer.push([1], [2]))
        assert not pair.target.bytes.any()


async def test_a_cancelled_push_has_ended_when_it_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "_CANCELLED_S", 30)
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(LONG, LONG))
        await moving("rxe0")
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(push)
        pair.target.bytes[:] = 0
        await within(pair.writer.push([0], [0]))
        assert not pair.target.bytes[BLOCK:].any()


async def test_a_cancelled_push_that_does_not_end_is_torn_down(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "_CANCELLED_S", 0)
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(LONG, LONG))
        await moving("rxe0")
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(push)
        pair.target.bytes[:] = 0
        with pytest.raises(TransferError, match="a push that was cancelled did not end"):
            await within(pair.writer.push([0], [0]))
        assert not pair.target.bytes.any()


async def test_a_sender_waits_for_a_receiver_that_is_not_ready(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "rxe0")
    monkeypatch.setattr(inlet_module, "_RECEIVES", 2)
    posts: list[QueuePair] = []
    post_receive = QueuePair.post_receive
    monkeypatch.setattr(QueuePair, "post_receive", lambda self: post_receive(self) if len(posts) < 2 else None)
    async with connected(4 * BLOCK, FIT) as pair:  # takes one of them
        posts += [pair.inlet._pairs[0]] * 2
        await within(pair.writer.push([0], [0]))  # what has been posted since
        await within(pair.writer.push([1], [1]))
        before = counter("rxe0", "rcvd_rnr_err")
        push = asyncio.create_task(pair.writer.push([2], [2]))
        await until(lambda: counter("rxe0", "rcvd_rnr_err") > before + 10)
        assert not push.done()
        posts.clear()
        pair.inlet._pairs[0].post_receive()
        await within(push)
        assert np.array_equal(pair.target.bytes[: 3 * BLOCK], pair.source.bytes[: 3 * BLOCK])


class Child:
    """An engine in a process of its own, forked while nothing of verbs is open."""

    def __init__(self, main: Any, *arguments: Any) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=main, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


def decode_main(pipe: Any, memory: Memory) -> None:
    async def serve() -> None:
        async with decode_side(memory) as inlet:
            pipe.send(inlet.offer)
            await asyncio.Event().wait()

    asyncio.run(serve())


def prefill_main(pipe: Any, memory: Memory) -> None:
    async def push() -> None:
        async with prefill_side(memory, pipe.recv(), FIT, BLOCKS) as writer:
            while True:
                await writer.push(LONG, LONG)

    asyncio.run(push())


@pytest.fixture
def decode() -> Iterator[tuple[Child, Memory]]:
    """A decode engine in another process, and its pool."""
    memory = Memory(BLOCKS * BLOCK)
    child = Child(decode_main, memory)
    yield child, memory
    child.kill()


@pytest.fixture
def prefill() -> Iterator[Child]:
    """A prefill engine in another process, which pushes on and on once it has an offer."""
    child = Child(prefill_main, Memory(BLOCKS * BLOCK, random=True))
    yield child
    child.kill()


async def test_a_killed_decode_engine_fails_the_push(decode: tuple[Child, Memory]):
    child, _ = decode
    offer = await asyncio.to_thread(child.pipe.recv)
    async with prefill_side(Memory(BLOCKS * BLOCK, random=True), offer, FIT, BLOCKS) as writer:
        push = asyncio.create_task(writer.push(LONG, LONG))
        await moving("rxe0")
        os.kill(child.process.pid, signal.SIGKILL)
        with pytest.raises(TransferError, match=r"closed its data connection|no NIC is left"):
            await within(push, 5)


async def test_a_stalled_decode_engine_fails_the_push(decode: tuple[Child, Memory], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "_STALL_S", 1)
    monkeypatch.setattr(writer_module, "_CLOSE_S", 1)
    child, _ = decode
    offer = await asyncio.to_thread(child.pipe.recv)
    async with prefill_side(Memory(BLOCKS * BLOCK, random=True), offer, FIT, BLOCKS) as writer:
        os.kill(child.process.pid, signal.SIGSTOP)
        with pytest.raises(TransferError, match="did not close rxe"):
            await within(writer.push([1], [2]))


async def test_after_a_prefill_engine_is_killed_nothing_is_written(prefill: Child, caplog: pytest.LogCaptureFixture):
    target = Memory(BLOCKS * BLOCK)
    caplog.set_level(logging.WARNING)
    async with decode_side(target) as inlet:
        prefill.pipe.send(inlet.offer)
        await moving("rxe0")
        os.kill(prefill.process.pid, signal.SIGKILL)
        await within(asyncio.wait({inlet._serving}))  # it has seen the end
        assert target.bytes.any()
        target.bytes[:] = 0
        await within(inlet.drained())
        assert not target.bytes.any()
