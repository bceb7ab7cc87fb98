"""Peers that say what no engine of ours would say, or nothing: the request fails, and never on the wrong blocks."""

import asyncio
import contextlib

import pytest
from transfer_harness import PREFILL, Pair, TransferLimits, decode_side, engines, identity, request, within

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Peer
from engine.transfer.handshake import introduce
from engine.transfer.wire import Abort, Channel, ChannelError, Chosen, Done, Granted, Quiet, Refused, Reserve


class PrefillByHand:
    """A prefill engine that says what a test wants."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    @staticmethod
    async def connect(peer: Peer, limits: TransferLimits) -> "PrefillByHand":
        channel = Channel(*await asyncio.open_connection(*peer), limits)
        await introduce(channel, identity(PREFILL), ["ipc"])
        channel.send(Chosen("ipc", []))
        return PrefillByHand(channel)

    async def says(self, message: object) -> object:
        self.channel.send(message)
        return await within(self.channel.receive())

    async def hang_up(self) -> None:
        """Wait until decode has closed the connection."""
        with contextlib.suppress(ChannelError):
            while True:
                await self.channel.receive()


async def by_hand(pair: Pair) -> PrefillByHand:
    return await within(PrefillByHand.connect(pair.peer, TransferLimits()))


async def test_a_stale_nonce_fails_the_request_and_never_starts_it():
    async with engines() as pair:
        prefill = await by_hand(pair)
        received = pair.receive(request("r", [1]))
        assert isinstance(await prefill.says(Reserve("r", 2, [1])), Granted)
        abort = await prefill.says(Done("r", 1, [7], 0, 0.0))
        assert abort == Abort("r", 2, f"prefill {PREFILL} used a stale nonce for request r")
        with pytest.raises(TransferError, match=f"prefill {PREFILL} used a stale nonce for request r"):
            await within(received)
        assert pair.decode_core.cancelled.empty()  # the writer of nonce 2 has not let go
        prefill.channel.send(Quiet("r", 2))
        await within(pair.decode_core.cancelled.get())
        assert pair.decode_core.started.empty()
        prefill.channel.close()


async def test_done_for_blocks_that_were_never_granted_fails_the_request():
    async with engines() as pair:
        pair.decode_core.at_once = False
        prefill = await by_hand(pair)
        received = pair.receive(request("r", [1]))
        prefill.channel.send(Reserve("r", 2, [1]))
        prefill.channel.send(Done("r", 2, [7], 0, 0.0))
        with pytest.raises(TransferError, match=f"prefill {PREFILL} said done for blocks that were not granted"):
            await within(received)
        assert isinstance(await within(prefill.channel.receive()), Refused)
        prefill.channel.close()


async def test_stale_words_about_forgotten_requests_are_harmless():
    async with engines() as pair:
        prefill = await by_hand(pair)
        for message in (Done("r", 1, [7], 0, 0.0), Abort("r", 1, "why not"), Quiet("r", 1)):
            prefill.channel.send(message)
        assert isinstance(await prefill.says(Reserve("r", 2, [1])), Granted)
        prefill.channel.close()


@pytest.mark.parametrize("nonsense", [Granted("r", 1, [1], 0), Reserve("r", 2, [1])])
async def test_a_peer_that_talks_nonsense_loses_its_connection(nonsense: object, caplog: pytest.LogCaptureFixture):
    async with engines() as pair:
        prefill = await by_hand(pair)
        assert isinstance(await prefill.says(Reserve("r", 2, [1])), Granted)
        prefill.channel.send(nonsense)
        await within(prefill.hang_up())
        await within(pair.decode_core.cancelled.get())
        assert f"connection to prefill {PREFILL} is lost: it" in caplog.text


@pytest.mark.parametrize("blocks", [[5, 5, 6], [0, 1, 64], [-1, 0, 1]])
async def test_prefill_never_writes_where_decode_has_no_block(blocks: list[int]):
    async with engines() as pair:
        pair.decode_core.blocks.take = lambda tokens: blocks
        pair.decode_core.blocks.give = lambda table: None
        with pytest.raises(TransferError, match="granted blocks that its pool does not have, or one twice"):
            await within(pair.deliver(request("r", 40)))


@pytest.mark.parametrize(("blocks", "cached"), [([1, 2], 0), ([1, 2, 3], 10)])
async def test_a_grant_that_does_not_fit_the_prompt_fails_the_request(blocks: list[int], cached: int):
    async with engines() as pair:
        pair.decode_core.blocks.take = lambda tokens: blocks
        pair.decode_core.blocks.give = lambda table: None
        pair.decode_core.cached_tokens = cached
        with pytest.raises(TransferError, match=f"granted {len(blocks)} blocks, {cached} tokens of them cached"):
            await within(pair.deliver(request("r", 40)))
        await within(pair.decode_core.cancelled.get())
        assert pair.prefill_core.submitted.empty()


async def test_silence_is_a_loss(pool: KVPool):
    limits = TransferLimits(ping_s=60.0, silence_s=0.3)
    async with decode_side(pool, limits=limits) as (decode, core, peer):
        prefill = await within(PrefillByHand.connect(peer, limits))
        received = asyncio.create_task(decode.receive(request("r", [1]), PREFILL))
        assert isinstance(await prefill.says(Reserve("r", 1, [1])), Granted)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost: it has been silent for 0.3 s"):
            await within(received)
        await within(core.cancelled.get())  # it had never fetched the memory, so it is no writer
        prefill.channel.close()
