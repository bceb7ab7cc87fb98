"""Either side gives up, or is lost, at each stage: the other hears of it at once, and no block is freed too early."""

import asyncio

import pytest
from transfer_harness import (
    BLOCK,
    DECODE,
    PREFILL,
    TransferLimits,
    engines,
    request,
    within,
)

from engine.errors import TransferError
from engine.transfer.transports.shm import ShmInlet


async def cancelled(task: "asyncio.Task[object]") -> None:
    """Cancel a leg, as its HTTP handler does when the client leaves."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


async def lost_within(queue: "asyncio.Queue[object]", seconds: float) -> bool:
    """Whether nothing comes out of the queue for that long."""
    try:
        await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return True
    return False


async def test_prefill_leaves_while_blocks_are_being_reserved():
    async with engines() as pair:
        pair.decode_core.at_once = False
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        _, _, future = await within(pair.decode_core.asked.get())
        await cancelled(delivered)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} aborted: the request was cancelled"):
            await within(received)
        assert future.cancelled()
        assert pair.prefill_core.submitted.empty()
        pair.check_idle()


async def test_prefill_leaves_while_computing():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        computing = await pair.submitted()
        await pair.prefill_core.compute(computing, 0, 20)
        await cancelled(delivered)
        assert pair.prefill_core.aborted == [computing.request_id] == [pair.prefill_core.released.get_nowait()]
        with pytest.raises(TransferError, match="aborted: the request was cancelled"):
            await within(received)
        pair.check_idle()


async def test_prefill_leaves_while_pushing():
    async with engines(held=True) as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(pair.prefill._transports[0].pushing.wait())
        delivered.cancel()
        delivered.cancel()  # impatience changes nothing: the write cannot be called back
        assert await lost_within(pair.prefill_core.released, 0.2)
        assert not received.done()
        pair.prefill._transports[0].gate.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await within(delivered)
        with pytest.raises(TransferError, match="aborted"):
            await within(received)
        pair.check_idle()


async def test_prefill_leaves_before_the_request_has_come():
    async with engines() as pair:
        delivered = pair.deliver(request("r"))
        await pair.submitted()
        await cancelled(delivered)
        await within(pair.decode_core.cancelled.get())
        with pytest.raises(TransferError, match="aborted"):  # at once, not at the deadline
            await within(pair.receive(request("r")))
        pair.check_idle()


async def test_a_failed_reservation_gives_way_to_the_next_of_that_name():
    async with engines() as pair:
        delivered = pair.deliver(request("r"))
        await pair.submitted()
        await cancelled(delivered)
        delivered, received = pair.deliver(request("r")), None
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(delivered)
        received = pair.receive(request("r"))
        await within(received)


async def test_decode_leaves_while_waiting_for_a_reservation():
    async with engines() as pair:
        received = pair.receive(request("r"))
        await asyncio.wait({received}, timeout=0.05)
        await cancelled(received)
        pair.check_idle()


async def test_decode_leaves_while_blocks_are_being_reserved():
    async with engines() as pair:
        pair.decode_core.at_once = False
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        _, _, future = await within(pair.decode_core.asked.get())
        await cancelled(received)
        with pytest.raises(TransferError, match=f"decode {DECODE} refused: the request was cancelled"):
            await within(delivered)
        assert future.cancelled()
        pair.check_idle()


async def test_decode_leaves_while_prefill_computes():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        computing = await pair.submitted()
        await cancelled(received)
        with pytest.raises(TransferError, match=f"decode {DECODE} aborted: the request was cancelled"):
            await within(delivered)
        assert pair.prefill_core.aborted == [computing.request_id]
        await within(pair.decode_core.cancelled.get())
        pair.check_idle()


async def test_decode_leaves_after_done():
    async with engines() as pair:
        pair.decode_core.at_once = False
        delivered = pair.deliver(request("r", [1]))
        name, prompt, future = await within(pair.decode_core.asked.get())
        pair.decode_core.grant(name, prompt, future)
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(delivered)
        with pytest.raises(TransferError, match="has 2 here"):
            await within(pair.receive(request("r", [1, 2])))
        await within(pair.decode_core.cancelled.get())
        pair.check_idle()


async def test_a_late_write_cannot_land_in_reused_blocks():
    """Decode's client leaves during a push: the blocks are not free, so nobody else's, until the write has landed."""
    async with engines(held=True) as pair:
        delivered, received = pair.deliver(request("r", 2 * BLOCK)), pair.receive(request("r", 2 * BLOCK))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(pair.prefill._transports[0].pushing.wait())
        await cancelled(received)
        assert await lost_within(pair.decode_core.cancelled, 0.3)
        assert len(pair.decode_core.blocks.free) == pair.decode_core.blocks.total - 2
        assert not pair.decode_core.pool.tensor.any()

        pair.prefill._transports[0].gate.set_result(None)
        freed = await within(pair.decode_core.cancelled.get())
        assert pair.decode_core.pool.tensor[freed.block_table].all()  # it was indeed written after the abort
        with pytest.raises(TransferError, match="aborted"):
            await within(delivered)
        pair.check_idle()


async def test_a_lost_connection_does_not_free_blocks_that_are_being_written():
    async with engines(held=True) as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(pair.prefill._transports[0].pushing.wait())
        [link] = [link.result() for link in pair.prefill._links.values()]
        link._channel._writer.transport.abort()
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost"):
            await within(received)
        assert await lost_within(pair.decode_core.cancelled, 0.3)
        pair.prefill._transports[0].gate.set_result(None)
        await within(pair.decode_core.cancelled.get())
        with pytest.raises(TransferError, match=f"decode {DECODE} is lost"):
            await within(delivered)
        pair.check_idle()


@pytest.mark.parametrize("cancelled_too", [False, True])
async def test_a_failed_writer_frees_no_block_before_decode_has_drained(
    cancelled_too: bool, monkeypatch: pytest.MonkeyPatch
):
    """What it had sent may still land: neither abort nor quiet is said, and the link is made anew."""
    async with engines(held=True) as pair:
        held = pair.prefill._transports[0]
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        await pair.prefill_core.compute_all(await pair.submitted())
        await within(held.pushing.wait())
        [link] = [link.result() for link in pair.prefill._links.values()]
        may_drain, drained = asyncio.Event(), ShmInlet.drained

        async def drain_later(inlet: ShmInlet) -> None:
            await may_drain.wait()
            await drained(inlet)

        monkeypatch.setattr(ShmInlet, "drained", drain_later)
        link._writer.failed = True
        if cancelled_too:
            delivered.cancel()
        held.gate.set_exception(TransferError("a stream broke"))
        with pytest.raises((TransferError, asyncio.CancelledError)):
            await within(delivered)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost"):
            await within(received)
        assert await lost_within(pair.decode_core.cancelled, 0.2)
        may_drain.set()
        await within(pair.decode_core.cancelled.get())
        assert link.lost
        pair.check_idle()


async def test_decode_stops_while_requests_are_under_way():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        waiting = pair.receive(request("not yet reserved"))
        await pair.submitted()
        await within(pair.decode.close())
        for leg in (received, waiting):
            with pytest.raises(TransferError, match="this engine is stopping"):
                await within(leg)
        with pytest.raises(TransferError, match=f"decode {DECODE} is lost: it closed the connection"):
            await within(delivered)
        assert pair.decode_core.cancelled.qsize() == 1
        pair.check_idle()


async def test_prefill_stops_while_requests_are_under_way():
    async with engines() as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        await pair.submitted()
        await within(pair.prefill.close())
        with pytest.raises(TransferError, match="this engine is stopping"):
            await within(delivered)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost"):
            await within(received)
        await within(pair.decode_core.cancelled.get())
        pair.check_idle()


async def test_the_deadline_ends_both_legs():
    async with engines(limits=TransferLimits(deliver_s=1.0)) as pair:
        delivered, received = pair.deliver(request("r")), pair.receive(request("r"))
        await pair.submitted()
        with pytest.raises(TransferError, match=r"waited 1 s for the KV of"):
            await within(received)
        with pytest.raises(TransferError, match=r"waited 1 s for the KV of|aborted: the request was cancelled"):
            await within(delivered)
        await within(pair.decode_core.cancelled.get())
        pair.check_idle()
