"""The engine core's reservations: blocks that a peer writes, and who owes them."""

import asyncio
from concurrent.futures import CancelledError, Future

import pytest

from engine.core import Reservation
from engine.errors import TransferError
from engine.scheduler.batch import Batch
from engine.scheduler.scheduler import Scheduler
from tests.engine.scheduler.fake_runner import first_tokens
from tests.engine.scheduler.rig import make_request
from tests.engine.served_core import TIMEOUT_S, Serve


def test_a_reservation_is_decoded(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 10, max_tokens=6, n=2)
    reservation = served.reserve("a", request.prompt)
    assert (reservation.request_id, reservation.prompt, reservation.cached_tokens) == ("a", request.prompt, 0)
    assert len(reservation.block_table) == 3
    assert served.core.stats().reserved == 1
    served.receive(reservation)
    served.core.start_decode(request, reservation, first_tokens(request))
    assert [token.token_id for token in served.tokens.get(timeout=TIMEOUT_S)] == first_tokens(request)
    served.collect(request)
    stats = served.core.stats()
    assert (stats.kv_transfer, stats.local_compute, stats.reserved, stats.blocks_free) == (10, 0, 0, 32)


def test_a_reservation_is_used_once(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 10, max_tokens=2)
    reservation = served.reserve("a", request.prompt)
    with pytest.raises(TransferError, match="2 first tokens came for a request of 1 choices"):
        served.core.start_decode(request, reservation, [1, 2])
    with pytest.raises(ValueError, match="not for b's prompt"):
        served.core.start_decode(make_request("b", [1] * 10), reservation, [1])
    with pytest.raises(ValueError, match="not for a's prompt"):
        served.core.start_decode(make_request("a", [2] * 10), reservation, [1])
    served.receive(reservation)
    served.core.start_decode(request, reservation, first_tokens(request))
    with pytest.raises(ValueError, match="used or cancelled before"):
        served.core.start_decode(request, reservation, first_tokens(request))
    served.core.cancel_reservation(reservation)
    served.assert_right(request)


def test_a_cancelled_reservation_cannot_be_decoded(serve: Serve) -> None:
    served = serve()
    reservation = served.reserve("a", [1] * 10)
    served.core.cancel_reservation(reservation)
    served.core.cancel_reservation(reservation)
    with pytest.raises(ValueError, match="used or cancelled before"):
        served.core.start_decode(make_request("a", [1] * 10), reservation, [1])
    served.settle()
    assert served.core.stats().blocks_free == 32


def test_reservations_wait_in_order_and_give_up_their_place(serve: Serve) -> None:
    served = serve(num_blocks=4)
    first = served.reserve("a", [1] * 16)
    second, third = served.core.reserve("b", [2] * 16), served.core.reserve("c", [3] * 4)
    fourth = served.core.reserve("d", [4] * 4)
    assert second.cancel()
    served.core.abort("c")
    with pytest.raises(CancelledError):
        third.result(TIMEOUT_S)
    served.core.cancel_reservation(first)
    assert fourth.result(TIMEOUT_S).request_id == "d"
    assert not fourth.cancel()
    served.core.cancel_reservation(fourth.result(0))
    for name in "abcd":
        served.core.cancel_reservation(served.reserve(name, [5] * 16))


def test_a_place_given_up_holds_nobody_back(serve: Serve) -> None:
    served = serve(num_blocks=6)
    served.reserve("a", [1] * 16)
    assert served.core.reserve("b", [2] * 16).cancel()
    served.settle()  # by a request that needs the one block that is not kept for a to grow, after b in the queue
    assert served.core.stats().waiting == 0


def test_blocks_granted_to_a_future_cancelled_just_before_go_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures: list[Future[Reservation]] = []
    schedule = Scheduler.schedule

    def cancel_and_schedule(scheduler: Scheduler) -> Batch | None:
        for future in futures:
            future.cancel()
        return schedule(scheduler)

    monkeypatch.setattr(Scheduler, "schedule", cancel_and_schedule)
    served = serve()
    gate = served.close_gate()
    request = make_request("a", [1], max_tokens=1)
    served.core.submit(request)
    served.runner.entered.get(timeout=TIMEOUT_S)
    futures.append(served.core.reserve("b", [2] * 16))  # cancelled after its command was taken, before it is granted
    gate.release(100)
    served.collect(request)
    served.settle()
    assert futures[0].cancelled()
    stats = served.core.stats()
    assert (stats.reserved, stats.blocks_free) == (0, stats.blocks_total)


def test_a_future_cancelled_in_the_same_moment_as_granted_is_one_or_the_other(serve: Serve) -> None:
    served = serve(num_blocks=4)
    for turn in range(200):
        future = served.core.reserve(f"r{turn}", [turn % 5] * 16)
        if not future.cancel():
            served.core.cancel_reservation(future.result(TIMEOUT_S))
    served.settle()
    stats = served.core.stats()
    assert (stats.waiting, stats.reserved, stats.blocks_free) == (0, 0, 4)


async def test_a_task_that_leaves_gives_up_its_place_or_gives_back_its_blocks(serve: Serve) -> None:
    served = serve(num_blocks=4)

    async def reserve_and_leave(future: Future[Reservation]) -> None:
        try:
            await asyncio.wrap_future(future)
        finally:
            if not future.cancel():
                served.core.cancel_reservation(future.result(TIMEOUT_S))

    for turn in range(50):
        first = await asyncio.wrap_future(served.core.reserve(f"first-{turn}", [1] * 16))
        task = asyncio.create_task(reserve_and_leave(served.core.reserve(f"second-{turn}", [2] * 16)))
        await asyncio.wait([task], timeout=0)
        served.core.cancel_reservation(first)  # races with the next line
        task.cancel()
        await asyncio.wait([task], timeout=TIMEOUT_S)
        assert task.done()
    served.settle()
    assert served.core.stats().blocks_free == 4


def test_an_aborted_reservation_belongs_to_its_writer_until_given_back(serve: Serve) -> None:
    served = serve()
    reservation = served.reserve("a", [1] * 8)
    served.core.abort("a")
    served.settle()
    assert served.core.stats().reserved == 1
    served.core.start_decode(make_request("a", [1] * 8), reservation, [1])
    served.settle()
    assert (served.core.stats().reserved, served.core.stats().blocks_free) == (0, 32)
    assert served.tokens.empty()
