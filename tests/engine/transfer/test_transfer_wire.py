"""Messages over a real connection: they arrive whole, and nonsense, excess or silence ends the connection."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_harness import LIMITS, TransferLimits, within

from engine.transfer import wire
from engine.transfer.blocks import Shard
from engine.transfer.wire import (
    Abort,
    Challenge,
    Channel,
    ChannelError,
    Chosen,
    Done,
    Granted,
    Hello,
    Ping,
    Quiet,
    Refused,
    Rejected,
    Reserve,
    Welcome,
)

_tokens = st.lists(st.integers(0, 2**31 - 1))
_crcs = st.integers(0, 2**32 - 1)
_nonces = st.integers(0, 2**63 - 1)
_shards = st.builds(Shard, *[st.integers(0, 2**40)] * 4)
_messages = st.one_of(
    st.builds(Challenge, st.binary()),
    st.builds(
        Hello,
        st.integers(0, 9),
        st.text(),
        st.binary(),
        st.lists(st.text()),
        st.text(),
        st.just({"shape": [1, 2], "dtype": "f"}),
        _shards,
    ),
    st.builds(Welcome, st.text(), st.dictionaries(st.text(), st.binary()), _shards),
    st.builds(Rejected, st.text()),
    st.builds(Chosen, st.text(), st.lists(st.text())),
    st.builds(Reserve, st.text(), _nonces, _tokens),
    st.builds(Granted, st.text(), _nonces, _tokens, st.integers(0, 2**20)),
    st.builds(Refused, st.text(), _nonces, st.text(), st.integers(400, 599)),
    st.builds(Done, st.text(), _nonces, _tokens, st.integers(0, 2**62), st.floats(0, 1e6), st.none() | _crcs),
    st.builds(Abort, st.text(), _nonces, st.text()),
    st.builds(Quiet, st.text(), _nonces),
)


@given(_messages)
def test_every_message_survives_the_wire(message: object):
    assert wire._decoder.decode(wire._encoder.encode(message)) == message


@asynccontextmanager
async def channels(
    limits: TransferLimits = LIMITS,
) -> AsyncIterator[tuple[Channel, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A channel, and the raw other end of its connection."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: accepted.set_result(Channel(*ends, limits)), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    channel = await within(accepted)
    try:
        yield channel, reader, writer
    finally:
        channel.close()
        writer.close()
        server.close()


async def test_messages_arrive_in_order_however_they_are_cut():
    async with channels() as (channel, _, writer):
        sent = [Quiet("a", 1), Ping(), Reserve("b", 2, list(range(1000))), Abort("c", 3, "why")]
        stream = b"".join(struct.pack("!I", len(frame)) + frame for frame in map(wire._encoder.encode, sent))
        for byte in range(0, len(stream), 100):
            writer.write(stream[byte : byte + 100])
            await writer.drain()
        received = [await within(channel.receive()) for _ in range(3)]
        assert received == [sent[0], sent[2], sent[3]]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack("!I", wire.MAX_FRAME + 1), "it sent a frame of 16777217 bytes where 16777216 are allowed"),
        (struct.pack("!I", 3) + b"\xff\xff\xff", "it sent a malformed message"),
        (struct.pack("!I", 7) + b"\x81\xa4type\x01", "it sent a malformed message"),
        (struct.pack("!I", 100) + b"cut", "it closed the connection"),
        (b"GET / HTTP/1.1\r\n\r\n", "it sent a frame of 1195725856 bytes"),
        (b"", "it closed the connection"),
    ],
)
async def test_nonsense_ends_the_connection_with_a_reason(sent: bytes, reason: str):
    async with channels() as (channel, _, writer):
        writer.write(sent)
        writer.write_eof()
        with pytest.raises(ChannelError, match=reason):
            await within(channel.receive())


async def test_a_tighter_frame_limit_holds_before_the_handshake():
    async with channels() as (channel, _, writer):
        writer.write(struct.pack("!I", wire.MAX_HANDSHAKE_FRAME + 1))
        with pytest.raises(ChannelError, match="65536 are allowed"):
            await within(channel.receive(max_frame=wire.MAX_HANDSHAKE_FRAME))


async def test_pings_keep_a_quiet_connection():
    limits = TransferLimits(ping_s=0.05, silence_s=2.0)
    async with channels(limits) as (channel, reader, writer):
        other = Channel(reader, writer, limits)
        with pytest.raises(TimeoutError):
            await within(channel.receive(), 2.5)
        other.send(Quiet("r", 1))
        assert await within(channel.receive()) == Quiet("r", 1)
        other.close()


async def test_silence_ends_the_connection():
    async with channels(TransferLimits(silence_s=0.1)) as (channel, _, _):
        with pytest.raises(ChannelError, match=r"silent for 0.1 s"):
            await within(channel.receive())


async def test_a_peer_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "MAX_BACKLOG", 1 << 20)
    async with channels() as (channel, _, _):
        for _ in range(64):
            channel.send(Reserve("r", 1, [2**31 - 1] * 100_000))
        with pytest.raises(ChannelError):
            await within(channel.receive())


async def test_what_is_sent_before_closing_arrives():
    async with channels() as (channel, reader, writer):
        channel.send(Rejected("not you"))
        channel.close()
        other = Channel(reader, writer, LIMITS)
        assert await within(other.receive()) == Rejected("not you")
        with pytest.raises(ChannelError, match="closed"):
            await within(other.receive())
        other.close()
        other.send(Quiet("r", 1))  # goes nowhere, as promised
