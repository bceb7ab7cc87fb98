"""Who may connect: engines of one deployment whose KV fits. Everybody else is told why not."""

import asyncio
import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_harness import DECODE, LAYOUT, LIMITS, TransferLimits, decode_side, identity, prefill_side, within

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer import handshake, wire
from engine.transfer.handshake import compat_hash, introduce
from engine.transfer.wire import Channel, Quiet, Welcome

MODEL = {"hidden": 576, "layers": 30, "name": "smollm2"}
FACTS = {"dtype": "bfloat16", "block_size": 16, "layout": {"kv_heads": 3}, "version": "0.1.0"}


def test_equal_engines_have_equal_hashes():
    assert compat_hash(MODEL, **FACTS) == compat_hash(dict(reversed(MODEL.items())), **FACTS)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float32"}, {"block_size": 32}, {"layout": {"kv_heads": 4}}, {"version": "0.2.0"}],
)
def test_any_difference_changes_the_hash(change: dict[str, object]):
    assert compat_hash(MODEL, **FACTS) != compat_hash(MODEL, **{**FACTS, **change})


@given(st.dictionaries(st.sampled_from(list(MODEL)), st.integers(), min_size=1))
def test_another_model_changes_the_hash(change: dict[str, int]):
    other = {**MODEL, **change}
    assert (compat_hash(other, **FACTS) == compat_hash(MODEL, **FACTS)) == (other == MODEL)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": "another"}, "wrong token: the engines belong to different deployments"),
        ({"token": None}, "wrong token"),
        (
            {"layout": {**LAYOUT.describe(), "block_size": 32}},
            r"KV layout differs: prefill has .*'block_size': 32.*, decode has .*'block_size': 16",
        ),
        ({"compat": "feed"}, "compat hash .* differs: prefill has feed, decode has 0123456789abcdef"),
    ],
)
async def test_a_misfit_is_rejected_with_both_values(
    pool: KVPool, change: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
):
    source = KVPool(LAYOUT, 4, shared=False)
    async with decode_side(pool) as (_, _, peer), prefill_side(source, **change) as (prefill, _):
        with pytest.raises(TransferError, match=f"cannot send KV to decode {peer}: rejected: {reason}"):
            await within(prefill._link(peer))
        assert "refused: rejected" in caplog.text  # decode's log has it too


async def test_another_wire_version_is_rejected_with_both_values(pool: KVPool, monkeypatch: pytest.MonkeyPatch):
    async with decode_side(pool) as (_, _, peer):
        channel = Channel(*await asyncio.open_connection(*peer), LIMITS)
        hello = handshake.Hello
        monkeypatch.setattr(handshake, "Hello", lambda version, *rest: hello(99, *rest))
        with pytest.raises(TransferError, match="KV wire version differs: prefill has 99, decode has 2"):
            await within(introduce(channel, identity("p"), ["ipc"]))
        channel.close()


async def test_another_transport_is_rejected_with_both_values(pool: KVPool):
    async with decode_side(pool) as (_, _, peer):
        channel = Channel(*await asyncio.open_connection(*peer), LIMITS)
        with pytest.raises(TransferError, match="no KV transport in common: prefill has rdma, decode has ipc"):
            await within(introduce(channel, identity("p"), ["rdma"]))
        channel.close()


async def test_without_a_token_of_its_own_decode_asks_for_none(pool: KVPool):
    async with decode_side(pool, token=None) as (_, _, peer):
        channel = Channel(*await asyncio.open_connection(*peer), LIMITS)
        assert isinstance(await within(introduce(channel, identity("p"), ["ipc"])), Welcome)
        channel.close()


async def test_the_token_never_travels():
    said = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frame = msgspec.msgpack.encode({"type": "challenge", "salt": b"salt"})
        writer.write(len(frame).to_bytes(4, "big") + frame)
        said.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    channel = Channel(*await asyncio.open_connection(*server.sockets[0].getsockname()), LIMITS)
    task = asyncio.create_task(introduce(channel, identity("p"), ["ipc"]))
    await asyncio.wait({task}, timeout=0.2)
    channel.close()
    await asyncio.wait({task})
    assert b"hello" in said
    assert b"the deployment's token" not in said
    server.close()


async def test_a_stranger_that_says_nothing_is_sent_away(pool: KVPool, caplog: pytest.LogCaptureFixture):
    async with decode_side(pool, limits=TransferLimits(connect_s=0.1)) as (_, _, peer):
        reader, writer = await asyncio.open_connection(*peer)
        await within(reader.read())
        writer.close()
    assert "no hello in time" in caplog.text


async def test_a_stranger_that_starts_with_something_else_is_sent_away(pool: KVPool, caplog: pytest.LogCaptureFixture):
    async with decode_side(pool) as (_, _, peer):
        reader, writer = await asyncio.open_connection(*peer)
        channel = Channel(reader, writer, LIMITS)
        channel.send(Quiet("r", 1))
        await within(channel.receive())  # the challenge
        with pytest.raises(wire.ChannelError):
            await within(channel.receive())
        channel.close()
    assert "it sent quiet where hello was due" in caplog.text


async def test_an_oversized_hello_is_not_read(pool: KVPool, caplog: pytest.LogCaptureFixture):
    async with decode_side(pool) as (_, _, peer):
        reader, writer = await asyncio.open_connection(*peer)
        writer.write((100_000).to_bytes(4, "big"))
        await within(reader.read())
        writer.close()
    assert "it sent a frame of 100000 bytes where 65536 are allowed" in caplog.text


async def test_connections_are_bounded(pool: KVPool, caplog: pytest.LogCaptureFixture):
    source = KVPool(LAYOUT, 4, shared=False)
    limits = TransferLimits(connections=1)
    async with (
        decode_side(pool, limits=limits) as (_, _, peer),
        prefill_side(source) as (first, _),
        prefill_side(source) as (second, _),
    ):
        await within(first._link(peer))
        with pytest.raises(TransferError, match="it closed the connection"):
            await within(second._link(peer))
        assert first.connected_decodes == [DECODE]
    assert "1 prefill engines are connected" in caplog.text


async def test_a_decode_engine_that_never_answers_is_given_up(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    source = KVPool(LAYOUT, 4, shared=False)
    async with prefill_side(source, limits=TransferLimits(connect_s=0.1)) as (prefill, _):
        from engine.transfer.base import Peer

        peer = Peer(*server.sockets[0].getsockname())
        with pytest.raises(TransferError, match=f"decode {peer}: waited 0.1 s for the connection and its handshake"):
            await within(prefill._link(peer))
    server.close()
