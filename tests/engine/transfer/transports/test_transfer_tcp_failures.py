"""TCP between two pools: who gets in, what is refused, and that nothing is written after the end."""

import asyncio
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection

import msgspec
import pytest
import torch
import uvloop
from transfer_harness import within
from transfer_processes import EngineProcess
from transfer_tcp_pairs import LAYOUT, connect, doorway, frame, hear, inlet, pair, random_pool, raw_streams, say, until

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.transports.tcp import frames
from engine.transfer.transports.tcp.inlet import Offer
from engine.transfer.transports.tcp.writer import TcpWriter

BLOCK_BYTES = LAYOUT.block_bytes
POOL_BYTES = 32 * BLOCK_BYTES
BIG = 4000  # blocks, 12 MB: more than sockets hold, so that a peer that does not read is noticed


def empty_pool(blocks: int = 32) -> KVPool:
    """A pool of zeros."""
    return KVPool(LAYOUT, blocks)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": b"k" * 32}, "no data connection to 127.0.0.1:"),
        ({"port": 1}, "no data connection to 127.0.0.1:1: "),
        ({"streams": "many"}, "its tcp offer is malformed"),
        ({"pool_bytes": POOL_BYTES - 1}, f"its pool has {POOL_BYTES - 1} bytes, less than 32 blocks"),
    ],
)
async def test_an_offer_that_does_not_fit_is_refused(change: dict[str, object], reason: str):
    source, target = random_pool(), empty_pool()
    async with inlet(target) as way_in:
        with pytest.raises(TransferError, match=reason):
            await connect(source, target, msgspec.msgpack.encode({**msgspec.msgpack.decode(way_in.offer), **change}))


async def test_after_draining_nobody_gets_in():
    source, target = random_pool(), empty_pool()
    async with inlet(target) as way_in:
        await within(way_in.drained())
        with pytest.raises(TransferError, match="no data connection"):
            await connect(source, target, way_in.offer)


BAD_FRAMES = {
    "no span": (frame(1, [], b""), "says that it has 0 spans"),
    "too many spans": (frame(1, [(0, 1)], b"x", spans=513), "513 spans"),
    "behind the pool": (frame(1, [(POOL_BYTES - 9, 10)], b"x" * 10), f"10 bytes at {POOL_BYTES - 9} are not in"),
    "far behind the pool": (frame(1, [(2**64 - 1, 10)], b"x" * 10), "are not in the pool"),
    "an empty span": (frame(1, [(0, 0)], b""), "0 bytes at 0"),
    "too large": (frame(1, [(0, frames.FRAME_BYTES + 1)], b"x" * 10), "are not in the pool"),
    "more than it says": (frame(1, [(0, 10)], b"x" * 10, push_bytes=9), "more than the 9 bytes"),
    "push 0": (frame(0, [(0, 10)], b"x" * 10), "push 0 came when that was complete"),
    "no frame at all": (b"GET / HTTP/1.1\r\nHost: decode\r\n\r\n", "spans"),
}


@pytest.mark.parametrize("kind", BAD_FRAMES)
async def test_a_malformed_frame_ends_the_pair(kind: str, caplog: pytest.LogCaptureFixture):
    target = empty_pool()
    data, reason = BAD_FRAMES[kind]
    async with inlet(target) as way_in:
        bad, good = await raw_streams(way_in.offer)
        with bad, good:
            await say(bad, data)
            assert await hear(bad) == b""
            assert await hear(good) == b""
        assert reason in caplog.text
        (late,) = await raw_streams(way_in.offer, 1)
        with late:
            assert await hear(late) == b""
    assert not target.tensor.view(-1)[10:].any()


async def test_a_stream_that_ends_within_a_frame_ends_the_pair(caplog: pytest.LogCaptureFixture):
    async with inlet(empty_pool()) as way_in:
        bad, good = await raw_streams(way_in.offer)
        with good:
            await say(bad, frame(1, [(0, 100)], b"x" * 100)[:-1])
            bad.close()
            assert await hear(good) == b""
    assert "the connection ended within a frame" in caplog.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(1, [(0, 100)], b"x" * 100)[:-1], "waited 0.2 s for the rest of a frame"),
        (b"\0", "waited 0.2 s for the rest of a frame"),
        (frame(3, [(0, 100)], b"x" * 100), "waited 0.2 s for push 1, which 3 follows"),
    ],
)
async def test_a_stalled_prefill_loses_the_pair(data: bytes, reason: str, caplog: pytest.LogCaptureFixture):
    async with inlet(empty_pool(), stall_s=0.2) as way_in:
        bad, good = await raw_streams(way_in.offer)
        with bad, good:
            await say(bad, data)
            assert await hear(good) == b""
    assert reason in caplog.text


async def test_what_was_sent_before_the_drain_is_not_written_after_it():
    target = empty_pool()
    async with inlet(target) as way_in:
        one, other = await raw_streams(way_in.offer)
        with one, other:
            await say(other, frame(2, [(0, 1000)], b"x" * 1000) * 20)  # these wait for push 1
            await say(one, frame(1, [(0, 1000)], b"y" * 1000)[:-1])
            await within(way_in.drained())
            after = target.tensor.clone()
            with suppress(ConnectionError):
                await say(one, b"y" + frame(2, [(0, 1000)], b"z" * 1000))
            while await hear(one):
                pass
            assert torch.equal(target.tensor, after)
            assert not (target.tensor.view(-1).view(torch.uint8) == ord("x")).any()


@pytest.mark.parametrize("streams", [1, 4])
async def test_no_write_lands_after_the_drain(streams: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames, "FRAME_BYTES", 10_000)
    source, target = random_pool(BIG), empty_pool(BIG)

    async def push_for_ever(writer: TcpWriter) -> None:
        while True:
            await writer.push(range(BIG), random.sample(range(BIG), BIG))

    for _ in range(5):
        async with pair(source, target, streams=streams) as (writer, way_in):
            pushing = [asyncio.create_task(push_for_ever(writer)) for _ in range(2)]
            await until(lambda: target.tensor[random.randrange(BIG)].any())
            await within(way_in.drained())
            target.tensor.zero_()
            for push in pushing:
                with pytest.raises(TransferError):
                    await within(push)
        assert not target.tensor.any()


@asynccontextmanager
async def false_decode(stall_s: float = 0.3) -> AsyncIterator[tuple[TcpWriter, list[socket.socket]]]:
    """A writer, and the two streams as a decode engine that is a test has them."""
    guests: list[socket.socket] = []
    source, target = random_pool(BIG), empty_pool(BIG)
    async with doorway() as door:
        offer = msgspec.msgpack.encode(Offer(door.port, door.make_door(guests.append), 2, target.nbytes))
        writer = await connect(source, target, offer, stall_s=stall_s)
        await until(lambda: len(guests) == 2)
        try:
            yield writer, guests
        finally:
            await within(writer.close())
            for guest in guests:
                guest.close()


async def test_a_decode_that_reads_nothing_fails_the_writer():
    async with false_decode() as (writer, _):
        pushes = [asyncio.create_task(writer.push(range(BIG), range(BIG))) for _ in range(3)]
        await within(asyncio.wait(pushes))
        for push in pushes:
            with pytest.raises(TransferError, match=r"waited 0\.3 s for the peer to take data"):
                push.result()
        with pytest.raises(TransferError, match="for the peer to take data"):
            await writer.push([1], [1])


async def test_a_decode_that_confirms_nothing_fails_the_writer():
    async with false_decode() as (writer, _):
        with pytest.raises(TransferError, match=r"waited 0\.3 s for decode to confirm a push"):
            await within(writer.push([1], [1]))
        assert writer.failure is not None


async def test_close_waits_until_decode_has_confirmed():
    async with false_decode(stall_s=60) as (writer, guests):
        push = asyncio.create_task(writer.push([1], [1]))
        closing = asyncio.create_task(writer.close())
        _, pending = await asyncio.wait({push, closing}, timeout=0.1)
        assert pending == {push, closing}
        await say(guests[0], bytes(7) + b"\1")
        await within(asyncio.gather(push, closing))


async def test_a_decode_that_confirms_what_it_was_not_sent_fails_the_writer():
    async with false_decode() as (writer, guests):
        push = asyncio.create_task(writer.push(range(BIG), range(BIG)))
        await say(guests[1], bytes(7) + b"\2")
        with pytest.raises(TransferError, match="confirmed push 2, which is not on its way"):
            await within(push)


async def test_a_decode_that_closes_a_connection_fails_the_writer_at_once():
    async with false_decode(stall_s=60) as (writer, guests):
        push = asyncio.create_task(writer.push(range(BIG), range(BIG)))
        await say(guests[1], bytes(4))
        guests[1].shutdown(socket.SHUT_RDWR)
        with pytest.raises(TransferError, match=r"data connection|sending has failed"):
            await within(push)


async def test_a_push_that_is_cancelled_while_decode_stalls_ends():
    async with false_decode() as (writer, _):
        push = asyncio.create_task(writer.push(range(BIG), range(BIG)))
        await asyncio.wait({push}, timeout=0.05)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(push)
        assert "for the peer to take data" in str(writer.failure)


async def test_decode_killed_in_mid_push():
    decode = EngineProcess(_decode_main)
    try:
        source, target = random_pool(BIG), empty_pool(BIG)
        writer = await connect(source, target, await decode.hears())
        await within(writer.push(range(BIG), range(BIG)))
        decode.signal(signal.SIGSTOP)
        pushes = [asyncio.create_task(writer.push(range(BIG), range(BIG))) for _ in range(3)]
        _, pending = await asyncio.wait(pushes, timeout=0.1)
        assert len(pending) == 3
        decode.signal(signal.SIGKILL)
        for push in pushes:
            with pytest.raises(TransferError):
                await within(push)
        await within(writer.close())
    finally:
        decode.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_prefill_that_is_killed_or_stopped_in_mid_push_does_not_hold_up_the_drain(number: signal.Signals):
    target = empty_pool(BIG)
    async with inlet(target) as way_in:
        prefill = EngineProcess(_prefill_main, way_in.offer)
        try:
            assert await prefill.hears() == "pushing"
            await until(lambda: target.tensor[random.randrange(BIG)].any())
            prefill.signal(number)
            await within(way_in.drained())
            target.tensor.zero_()
            if number == signal.SIGSTOP:
                prefill.signal(signal.SIGCONT)
                assert "failed" in await prefill.hears()
            assert not target.tensor.any()
        finally:
            prefill.end()


def _decode_main(pipe: Connection) -> None:
    async def serve() -> None:
        async with inlet(empty_pool(BIG)) as way_in:
            pipe.send(way_in.offer)
            await asyncio.to_thread(pipe.recv)

    uvloop.run(serve())


def _prefill_main(pipe: Connection, offer: bytes) -> None:
    async def push_for_ever() -> None:
        source = random_pool(BIG)
        writer = await connect(source, source, offer)
        pipe.send("pushing")
        try:
            while True:
                await writer.push(range(BIG), range(BIG))
        except TransferError as error:
            pipe.send(f"failed: {error}")
        await writer.close()

    uvloop.run(push_for_ever())
