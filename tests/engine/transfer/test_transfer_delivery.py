"""Requests through both sides: what arrives, in which order legs may come, and how each stage fails."""

import asyncio
import random

import pytest
from transfer_harness import (
    BLOCK,
    DECODE,
    LAYOUT,
    PREFILL,
    TransferLimits,
    decode_side,
    engines,
    prefill_side,
    read_prompt,
    request,
    within,
)

from engine.errors import RequestError, TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Peer


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("chunk", [7, 16, 512])
async def test_the_prompts_kv_arrives(tokens: int, chunk: int):
    async with engines() as pair:
        prompt = [random.randrange(1, 10_000) for _ in range(tokens)]
        received = pair.receive(request("r", prompt, n=2))
        delivered = pair.deliver(request("r", prompt, n=2))
        await pair.prefill_core.compute_all(await pair.submitted(), chunk=chunk, first_tokens=[5, 6])

        result = await within(delivered)
        await within(received)
        started, reservation, first_tokens = pair.decode_core.started.get_nowait()
        assert first_tokens == [5, 6] == result.first_tokens
        assert started.request_id == "r"
        assert read_prompt(pair.decode_core.pool, reservation.block_table, tokens) == prompt
        blocks = -(-tokens // BLOCK)
        assert result.bytes == blocks * LAYOUT.block_bytes
        sent, received = pair.prefill.counters.pairs["ipc", DECODE], pair.decode.counters.pairs["ipc", PREFILL]
        assert sent.bytes == received.bytes == result.bytes
        assert sent.seconds == received.seconds > 0
        assert (sent.connected, received.connected, received.pushes) == (1, 1, 1)
        pair.decode_core.finish(reservation)
        pair.check_idle()


async def test_a_chunk_is_pushed_while_the_next_is_computed():
    async with engines(held=True) as pair:
        delivered = pair.deliver(request("r", 40))
        computing = await pair.submitted()
        await pair.prefill_core.compute(computing, 0, 15)
        assert not pair.prefill._transports[0].pushing.is_set()  # no block is complete
        await pair.prefill_core.compute(computing, 15, 33)
        await within(pair.prefill._transports[0].pushing.wait())
        pair.prefill._transports[0].gate.set_result(None)
        await pair.prefill_core.compute(computing, 33, 40, [7])
        await within(delivered)
        assert pair.prefill.counters.pairs["ipc", DECODE].pushes == 2


async def test_blocks_that_decode_has_cached_are_left_alone():
    async with engines() as pair:
        pair.decode_core.cached_tokens = 2 * BLOCK
        delivered, received = pair.deliver(request("r", 40)), pair.receive(request("r", 40))
        await pair.prefill_core.compute_all(await pair.submitted(), chunk=BLOCK)
        result = await within(delivered)
        await within(received)
        _, reservation, _ = pair.decode_core.started.get_nowait()
        assert (result.cached_tokens, result.bytes) == (2 * BLOCK, LAYOUT.block_bytes)
        assert not pair.decode_core.pool.tensor[reservation.block_table[:2]].any()


async def test_a_wholly_cached_prompt_needs_no_push():
    async with engines() as pair:
        pair.decode_core.cached_tokens = 2 * BLOCK
        delivered, received = pair.deliver(request("r", 2 * BLOCK)), pair.receive(request("r", 2 * BLOCK))
        await pair.prefill_core.compute_all(await pair.submitted())
        assert (await within(delivered)).bytes == 0
        await within(received)
        assert pair.decode_core.started.qsize() == 1


async def test_the_reservation_may_come_long_before_the_request():
    async with engines() as pair:
        delivered = pair.deliver(request("r"))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(delivered)
        await within(pair.receive(request("r")))
        assert pair.decode_core.started.qsize() == 1


async def test_many_requests_at_once_keep_their_kv_apart():
    async with engines(blocks=256) as pair:
        prompts = {f"r{i}": [random.randrange(1, 10_000) for _ in range(random.randrange(1, 90))] for i in range(30)}
        legs = [pair.deliver(request(name, prompt)) for name, prompt in prompts.items()]
        legs += [pair.receive(request(name, prompt)) for name, prompt in prompts.items()]
        await asyncio.gather(
            *[pair.prefill_core.compute_all(await pair.submitted(), chunk=10) for _ in range(len(prompts))]
        )
        await within(asyncio.gather(*legs))
        while not pair.decode_core.started.empty():
            started, reservation, _ = pair.decode_core.started.get_nowait()
            prompt = prompts[started.request_id]
            assert read_prompt(pair.decode_core.pool, reservation.block_table, len(prompt)) == prompt


async def test_engines_that_meet_are_connected_before_the_first_request():
    async with engines() as pair:
        for _ in range(3):
            pair.prefill.meet([pair.peer])
        await within(pair.prefill._link(pair.peer))
        assert pair.prefill.connected_decodes == [DECODE]
        [connection] = pair.prefill._connections
        pair.prefill.meet([pair.peer])
        assert pair.prefill._connections == {connection}


async def test_a_decode_engine_that_cannot_be_met_is_logged_once_and_tried_again(caplog: pytest.LogCaptureFixture):
    async with engines() as pair:
        nobody = Peer("127.0.0.1", 1)
        for _ in range(2):
            pair.prefill.meet([nobody])
            assert pair.prefill._connections
            await within(asyncio.wait(pair.prefill._connections))
        assert caplog.text.count(f"cannot send KV to decode {nobody}") == 1


async def test_one_connection_serves_all_requests_and_is_made_anew_after_a_loss():
    async with engines() as pair:
        await within(pair.prefill._link(pair.peer))
        assert pair.prefill.connected_decodes == [DECODE]
        [connection] = pair.prefill._connections
        await within(asyncio.gather(*[pair.prefill._link(pair.peer) for _ in range(5)]))
        assert pair.prefill._connections == {connection}

        [link] = [link.result() for link in pair.prefill._links.values()]
        link._channel.close()
        await within(asyncio.wait({connection}))
        assert pair.prefill.connected_decodes == []
        await within(pair.prefill._link(pair.peer))
        assert pair.prefill.connected_decodes == [DECODE]


async def test_what_prefill_cannot_compute_is_refused_before_anything_is_reserved():
    async with engines() as pair:
        pair.decode_core.at_once = False
        pair.prefill_core.refusal = RequestError("too long", code="context_length_exceeded")
        with pytest.raises(RequestError, match="too long") as caught:
            await within(pair.deliver(request("r", 40)))
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        assert pair.decode_core.asked.empty()


async def test_what_decode_cannot_compute_is_refused_at_once():
    async with engines() as pair:
        pair.decode_core.refusal = RequestError("too long", code="context_length_exceeded")
        with pytest.raises(RequestError, match="too long") as caught:
            await within(pair.receive(request("r", 40)))
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


async def test_a_refusals_code_reaches_prefill():
    async with engines() as pair:
        pair.decode_core.at_once = False
        delivered = pair.deliver(request("r", 40))
        _, _, future = await within(pair.decode_core.asked.get())
        future.set_exception(RequestError("too long", code="context_length_exceeded"))
        with pytest.raises(TransferError, match="too long") as caught:
            await within(delivered)
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


async def test_no_free_blocks_in_time_is_a_refusal_on_both_sides():
    limits = TransferLimits(reserve_s=0.1)
    async with engines(limits=limits) as pair:
        pair.decode_core.at_once = False
        delivered, received = pair.deliver(request("r", 40)), pair.receive(request("r", 40))
        _, _, future = await within(pair.decode_core.asked.get())
        reason = r"no place with KV blocks for 40 tokens became free within 0.1 s"
        with pytest.raises(TransferError, match=reason) as caught:
            await within(received)
        assert caught.value.status == 503
        with pytest.raises(TransferError, match=f"decode {DECODE} refused: {reason}") as caught:
            await within(delivered)
        assert caught.value.status == 503
        assert future.cancelled()
        assert pair.prefill_core.submitted.empty()
        assert (pair.prefill.counters.failures, pair.decode.counters.failures) == (1, 1)
        pair.check_idle()


async def test_blocks_granted_just_too_late_go_back():
    async with engines(limits=TransferLimits(reserve_s=0.1)) as pair:
        pair.decode_core.at_once = False
        delivered = pair.deliver(request("r", 40))
        name, prompt, future = await within(pair.decode_core.asked.get())
        assert future.set_running_or_notify_cancel()  # from here on cancel() comes too late
        with pytest.raises(TransferError, match="refused"):
            await within(delivered)
        pair.decode_core.grant(name, prompt, future)
        await within(pair.decode_core.cancelled.get())


async def test_the_cores_refusal_keeps_its_status():
    async with engines() as pair:
        pair.decode_core.at_once = False
        delivered, received = pair.deliver(request("r", 40)), pair.receive(request("r", 40))
        _, _, future = await within(pair.decode_core.asked.get())
        future.set_exception(RequestError("The prompt has 40 tokens, more than fit.", status=400))
        for leg in (received, delivered):
            with pytest.raises(RequestError, match="more than fit") as caught:
                await within(leg)
            assert caught.value.status == 400


async def test_a_reservation_whose_request_never_comes_is_taken_back():
    async with engines(limits=TransferLimits(join_s=0.2)) as pair:
        delivered = pair.deliver(request("r"))
        await pair.submitted()
        with pytest.raises(TransferError, match=r"aborted: the router sent no such request within 0.2 s"):
            await within(delivered)
        await within(pair.decode_core.cancelled.get())
        pair.check_idle()


async def test_kv_that_never_comes_fails_the_request_naming_prefill_and_time():
    async with engines(limits=TransferLimits(deliver_s=0.2)) as pair:
        with pytest.raises(TransferError, match=f"waited 0.2 s for the KV of r from prefill {PREFILL}") as caught:
            await within(pair.receive(request("r")))
        assert caught.value.status == 504
        pair.check_idle()


async def test_prompts_that_differ_fail_the_request():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r", [1, 2, 3])), pair.receive(request("r", [1, 9, 3]))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(delivered)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} made token 2 of prompt position 1, which has 9"):
            await within(received)
        assert pair.decode_core.started.empty()
        pair.check_idle()


async def test_prompts_of_different_length_fail_the_request():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r", [1, 2, 3])), pair.receive(request("r", [1, 2]))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(delivered)
        with pytest.raises(TransferError, match="3 tokens of a prompt that has 2 here"):
            await within(received)
        pair.check_idle()


async def test_a_request_in_use_is_refused_twice():
    async with engines() as pair:
        first = pair.deliver(request("r"))
        await pair.submitted()
        with pytest.raises(TransferError, match="request r has a reservation already") as caught:
            await within(pair.deliver(request("r")))
        assert caught.value.status == 409
        legs = {pair.receive(request("other")), pair.receive(request("other"))}
        [second], [waiting] = await asyncio.wait(legs, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert "request other waits for its KV already" in str(second.exception())
        for task in (first, waiting):
            task.cancel()
        await asyncio.wait({first, waiting})


async def test_tables_are_bounded():
    async with engines(limits=TransferLimits(transfers=1)) as pair:
        first, waiting = pair.deliver(request("r")), pair.receive(request("w"))
        await pair.submitted()
        with pytest.raises(TransferError, match="1 reservations are open"):
            await within(pair.deliver(request("s")))
        with pytest.raises(TransferError, match="1 requests wait for their KV"):
            await within(pair.receive(request("x")))
        for task in (first, waiting):
            task.cancel()
        await asyncio.wait({first, waiting})


async def test_nobody_listening_is_said_with_the_address(pool: KVPool):
    async with decode_side(pool) as (_, _, peer):
        pass
    async with prefill_side(KVPool(LAYOUT, 4, shared=False)) as (prefill, core):
        with pytest.raises(TransferError, match=f"cannot send KV to decode {peer}: .*refused|Connect call failed"):
            await within(prefill.deliver(request("r"), peer))
        assert core.submitted.empty()
