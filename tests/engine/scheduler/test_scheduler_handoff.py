"""The two roles: prompts held for a peer to read, and blocks reserved for a peer to write."""

from engine.scheduler.request import FinishReason, Request
from tests.engine.scheduler.fake_runner import first_tokens
from tests.engine.scheduler.rig import Rig, make_request


def start(rig: Rig, request: Request) -> None:
    """Reserve, let the peer write, start decoding."""
    rig.decode(request, rig.reserve(request.request_id, request.prompt))


def test_a_held_prompt_tells_of_each_chunk_and_is_not_decoded() -> None:
    rig = Rig()
    request = rig.hold("a", [1] * 18, n=2)
    rig.run()
    spans = [(event.start, event.end, event.first_tokens) for event in rig.prefilled]
    assert spans == [(0, 8, None), (8, 16, None), (16, 18, first_tokens(request))]
    assert rig.tokens == []
    assert rig.stats[:4] == (0, 0, 1, 0)
    assert rig.stats.blocks_free == 16 - 5


def test_a_held_prompt_owns_its_blocks_until_release_and_is_found_after_it() -> None:
    rig = Rig()
    rig.hold("a", [1] * 8)
    rig.run()
    rig.scheduler.abort("a")
    assert rig.stats.blocks_free == 14
    assert rig.ended == []
    rig.scheduler.release("a")
    rig.scheduler.release("a")
    assert rig.stats.blocks_free == 16
    assert rig.ended == ["a"]
    rig.hold("b", [1] * 9)
    rig.run()
    assert rig.prefilled[-1][2:] == (0, 9, first_tokens(make_request("b", [1] * 9)))  # what was found is told of too
    assert rig.stats.local_cache_hit == 8


def test_an_aborted_hold_is_computed_no_further_and_keeps_its_blocks() -> None:
    rig = Rig()
    rig.hold("a", [1] * 20)
    rig.step()
    rig.scheduler.abort("a")
    rig.run()
    assert [event.end for event in rig.prefilled] == [8]
    assert rig.stats.blocks_free == 16 - 5
    rig.scheduler.release("a")
    assert rig.stats.blocks_free == 16


def test_release_ends_what_is_still_computed_or_waits() -> None:
    rig = Rig(max_num_seqs=1)
    rig.hold("a", [1] * 20)
    rig.hold("b", [2] * 20)
    rig.step()
    rig.scheduler.release("b")
    rig.scheduler.release("a")
    assert rig.ended == ["b", "a"]
    assert rig.step() is None
    assert rig.stats.blocks_free == 16


def test_an_aborted_hold_without_blocks_is_gone() -> None:
    rig = Rig(max_num_seqs=1)
    rig.hold("a", [1] * 20)
    rig.hold("b", [2] * 20)
    rig.step()
    rig.scheduler.abort("b")
    assert rig.ended == ["b"]


def test_holds_leave_their_place_in_the_steps_when_complete() -> None:
    rig = Rig(max_num_seqs=1)
    rig.hold("a", [1])
    rig.hold("b", [2])
    rig.run()
    assert [event.request_id for event in rig.prefilled] == ["a", "b"]


def test_what_a_transfer_reads_is_not_preempted() -> None:
    rig = Rig(num_blocks=5, max_num_seqs=2, max_batched_tokens=2)
    decoding = rig.submit("old", [1] * 3, max_tokens=10)
    rig.step()
    rig.hold("held", [2] * 12)
    while not rig.stats.preemptions:
        rig.step()
    assert 0 < rig.prefilled[-1].end < 12  # the youngest by far
    rig.run()
    assert [event.end for event in rig.prefilled][-1] == 12
    assert len({tuple(event.block_table) for event in rig.prefilled}) == 1
    rig.scheduler.release("held")
    rig.run()
    rig.assert_right(decoding)


def test_a_reservation_is_decoded_after_its_first_tokens() -> None:
    rig = Rig()
    request = make_request("a", [1] * 10, max_tokens=6, n=3)
    start(rig, request)
    assert [(token.index, token.token_id) for token in rig.tokens] == list(enumerate(first_tokens(request)))
    rig.run()
    rig.assert_right(request)
    stats = rig.stats
    assert (stats.prompt_tokens, stats.kv_transfer, stats.local_compute, stats.local_cache_hit) == (10, 10, 0, 0)
    assert stats.generated_tokens == 18
    assert rig.ended == ["a"]
    assert rig.stats.blocks_free == 16


def test_a_first_token_can_be_the_last() -> None:
    rig = Rig()
    stop = first_tokens(make_request("a", [1] * 5))[0]
    start(rig, make_request("a", [1] * 5, stop_token_ids=frozenset({stop})))
    start(rig, make_request("b", [2] * 5, max_tokens=1))
    assert [token.finish_reason for token in rig.tokens] == [FinishReason.STOP, FinishReason.LENGTH]
    assert rig.ended == ["a", "b"]
    assert rig.step() is None


def test_a_transferred_prompt_is_in_the_prefix_cache_from_the_start_of_decoding() -> None:
    rig = Rig()
    early = rig.reserve("early", [1] * 8)
    assert early.cached_tokens == 0
    start(rig, make_request("a", [1] * 8, max_tokens=3))
    late = rig.reserve("late", [1] * 8)
    assert late.cached_tokens == 8
    assert len(late.block_table) == 2
    longer = rig.reserve("longer", [1] * 11)
    assert longer.cached_tokens == 8
    assert longer.block_table[:2] == late.block_table
    assert len(longer.block_table) == 3
    for reservation in (early, late, longer):
        rig.scheduler.cancel_reservation(reservation)
    rig.run()
    assert rig.stats.blocks_free == 16
    start(rig, make_request("b", [1] * 9, max_tokens=1))
    stats = rig.stats
    assert (stats.kv_transfer, stats.local_cache_hit, stats.prompt_tokens) == (8 + 1, 8, 17)


def test_reservations_wait_in_order_and_leave_room_for_the_running() -> None:
    rig = Rig(num_blocks=8)
    start(rig, make_request("a", [1] * 15))  # 4 blocks; 1 of the rest is for its growth
    rig.ask("big", [2] * 13)
    rig.ask("small", [3] * 4)
    rig.step()
    assert [reservation.request_id for reservation in rig.granted] == ["a"]
    assert rig.stats.waiting == 2
    rig.scheduler.abort("a")
    assert rig.step() is None
    assert [reservation.request_id for reservation in rig.granted] == ["a", "big", "small"]
    assert rig.stats.blocks_free == 3


def test_reservations_leave_room_for_each_other_to_grow() -> None:
    rig = Rig(num_blocks=10)
    requests = [make_request(name, [number] * 8, max_tokens=4) for number, name in enumerate("abcd", 1)]
    for request in requests:
        rig.ask(request.request_id, request.prompt)
    rig.step()
    assert [reservation.request_id for reservation in rig.granted] == ["a", "b", "c"]  # of d's, one was to grow
    for request, reservation in zip(requests, rig.granted, strict=False):
        rig.decode(request, reservation)
    rig.run()
    for request, reservation in zip(requests[3:], rig.granted[3:], strict=True):
        rig.decode(request, reservation)
    rig.run()
    rig.assert_right(*requests)
    assert (rig.stats.preemptions, rig.stats.local_compute) == (0, 0)


def test_a_reservation_can_take_the_whole_pool() -> None:
    rig = Rig(num_blocks=4)
    request = make_request("a", [1] * 16, max_tokens=5)
    start(rig, request)
    rig.run()
    rig.assert_right(request)


def test_a_place_in_the_queue_can_be_given_up() -> None:
    rig = Rig(num_blocks=4)
    first = rig.reserve("a", [1] * 16)
    rig.ask("b", [2] * 16)
    rig.ask("c", [3] * 16, wanted=False)
    rig.ask("d", [4] * 16)
    rig.scheduler.abort("b")
    assert rig.ended == ["b"]
    rig.scheduler.cancel_reservation(first)
    rig.step()
    assert [reservation.request_id for reservation in rig.granted] == ["a", "c", "d"]
    assert rig.ended == ["b", "a", "c"]
    assert rig.stats.blocks_free == 0


def test_an_aborted_reservation_keeps_its_blocks_until_its_writer_is_done() -> None:
    rig = Rig()
    one, other = rig.reserve("a", [1] * 8), rig.reserve("b", [2] * 8)
    rig.scheduler.abort("a")
    rig.scheduler.abort("b")
    assert rig.stats.blocks_free == 12
    assert rig.ended == []
    rig.receive(one)
    assert rig.scheduler.start_decode(make_request("a", [1] * 8), one, [1]) == []
    rig.scheduler.cancel_reservation(other)
    assert rig.ended == ["a", "b"]
    assert rig.step() is None
    assert rig.stats.blocks_free == 16
    again = make_request("a", [1] * 8, max_tokens=4)
    start(rig, again)
    rig.run()
    rig.assert_right(again)


def test_a_cancelled_reservation_is_not_in_the_prefix_cache() -> None:
    rig = Rig()
    rig.scheduler.cancel_reservation(rig.reserve("a", [1] * 8))
    assert rig.reserve("b", [1] * 8).cached_tokens == 0


def test_a_preempted_transfer_is_computed_here_and_counted() -> None:
    rig = Rig(num_blocks=6)
    requests = [make_request("a", [1] * 8, max_tokens=9), make_request("b", [2] * 8, max_tokens=9)]
    for request in requests:
        start(rig, request)
    rig.run()
    rig.assert_right(*requests)
    stats = rig.stats
    assert stats.preemptions >= 1
    assert stats.local_compute > 0
    assert (stats.kv_transfer, stats.prompt_tokens) == (16, 16)


def test_no_more_are_decoded_at_once_than_a_step_takes_and_no_more_granted_than_twice_that() -> None:
    rig = Rig(max_num_seqs=2)
    requests = [make_request(name, [ord(name)], max_tokens=5) for name in "abcd"]
    for request in requests:
        start(rig, request)
    rig.ask("e", [0])
    batch = rig.step()
    assert batch is not None
    assert len(batch.chunks) == 2
    assert len(rig.granted) == 4
    rig.run()
    assert rig.granted[-1].request_id == "e"
    rig.assert_right(*requests)
