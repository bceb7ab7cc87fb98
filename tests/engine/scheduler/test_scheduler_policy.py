"""Who is computed when: budgets, order, admission, preemption, choices, and where a sequence ends."""

import pytest

from engine.errors import EngineError
from engine.scheduler.block_manager import BlockManager
from engine.scheduler.request import FinishReason
from tests.engine.scheduler.fake_runner import VOCABULARY, expected, first_tokens
from tests.engine.scheduler.rig import Rig, make_request


def test_decodes_go_before_prompts_and_prompts_in_order_within_the_budget() -> None:
    rig = Rig()
    rig.submit("a", [1] * 5)
    rig.submit("b", [2] * 12)
    rig.submit("c", [3] * 3)
    assert rig.shape() == [("a", 0, 5), ("b", 0, 3)]
    assert rig.shape() == [("a", 5, 1), ("b", 3, 7)]
    assert rig.shape() == [("a", 6, 1), ("b", 10, 2), ("c", 0, 3)]
    assert rig.shape() == [("a", 7, 1), ("b", 12, 1), ("c", 3, 1)]


def test_only_the_last_chunk_of_a_prompt_is_sampled() -> None:
    rig = Rig()
    rig.submit("a", [1] * 20)
    rig.run()
    assert [batch.chunks[0].samples for batch in rig.runner.batches[:4]] == [0, 0, 1, 1]


def test_no_more_sequences_run_than_allowed_and_the_next_gets_the_free_place() -> None:
    rig = Rig(max_num_seqs=2)
    for name in "abc":
        rig.submit(name, [1], max_tokens=3 if name == "a" else 10)
    assert [len(rig.shape()) for _ in range(3)] == [2, 2, 2]
    assert [name for name, _, _ in rig.shape()] == ["b", "c"]


def test_choices_take_a_place_each_from_the_start() -> None:
    rig = Rig(max_num_seqs=4)
    rig.submit("a", [1] * 10, n=3)
    rig.submit("b", [2], n=2)
    rig.submit("c", [3])  # would fit, but order is kept
    assert [rig.shape() for _ in range(3)] == [
        [("a", 0, 8)],
        [("a", 8, 2)],
        [("a", 10, 1)] * 3,
    ]


def test_a_prompt_waits_until_the_running_can_still_grow() -> None:
    rig = Rig(num_blocks=4, prefix_caching=False)
    rig.submit("a", [1] * 4)
    rig.submit("b", [2] * 12)
    assert rig.shape() == [("a", 0, 4)]  # three blocks are free, but one of them is for a's next token
    rig.scheduler.abort("a")
    assert rig.shape() == [("b", 0, 8)]


def test_what_waits_is_looked_up_again_only_when_blocks_came_free(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[int] = []
    match = BlockManager.match
    monkeypatch.setattr(BlockManager, "match", lambda *args: lookups.append(1) or match(*args))
    rig = Rig(num_blocks=6)
    rig.submit("a", [1] * 4, max_tokens=12)
    rig.submit("b", [2] * 20, max_tokens=1)
    for _ in range(11):
        rig.step()
    assert len(lookups) == 2
    rig.run()
    assert rig.ended == ["a", "b"]


def test_the_youngest_is_preempted_and_computed_anew_before_those_who_wait() -> None:
    rig = Rig(num_blocks=4, prefix_caching=False)
    old, young = rig.submit("old", [1] * 4, max_tokens=9), rig.submit("young", [2] * 4, max_tokens=9)
    late = rig.submit("late", [3] * 4, max_tokens=9)
    assert [rig.shape() for _ in range(6)][-1] == [("old", 8, 1)]
    stats = rig.stats
    assert (stats.preemptions, stats.running, stats.waiting) == (1, 1, 2)
    preempted = rig.runner.batches[0].chunks[1].sequence
    assert (preempted.block_table, preempted.num_computed) == ([], 0)
    rig.run()
    rig.assert_right(old, young, late)
    order = [token.request_id for token in rig.tokens if token.finish_reason]
    assert order == ["old", "young", "late"]
    assert rig.stats.local_compute == 12 + 8  # the prompts; young's prompt and four tokens once more


def test_a_prompt_computed_half_can_be_preempted() -> None:
    rig = Rig(num_blocks=6, max_batched_tokens=4)
    old, young = rig.submit("old", [1] * 3, max_tokens=12), rig.submit("young", [2] * 16, max_tokens=3)
    rig.run()
    rig.assert_right(old, young)
    assert rig.stats.preemptions == 1
    assert rig.stats.local_cache_hit == 0  # what it had computed itself is no hit


def test_choices_share_a_prompt_and_copy_only_its_partial_block() -> None:
    rig = Rig()
    request = rig.submit("a", [1] * 6, max_tokens=5, n=3)
    rig.step()
    first = rig.runner.batches[-1]
    assert [(chunk.length, chunk.samples) for chunk in first.chunks] == [(6, 3)]
    assert rig.stats.blocks_free == 14
    rig.step()
    second = rig.runner.batches[-1]
    assert [chunk.sequence.index for chunk in second.chunks] == [0, 1, 2]
    assert len(second.copies) == 2  # the last one writes where the prompt ends
    assert len({chunk.sequence.block_table[0] for chunk in second.chunks}) == 1
    assert len({chunk.sequence.block_table[1] for chunk in second.chunks}) == 3
    rig.run()
    rig.assert_right(request)
    assert rig.ended == ["a"]
    assert rig.stats.prompt_tokens == rig.stats.local_compute == 6


def test_choices_are_as_old_as_their_request() -> None:
    rig = Rig()
    rig.submit("a", [1] * 3, n=2)
    rig.submit("b", [2] * 3)
    rig.step()
    assert [name for name, _, _ in rig.shape()] == ["a", "a", "b"]


def test_choices_of_whole_blocks_copy_nothing() -> None:
    rig = Rig()
    request = rig.submit("a", [1] * 8, max_tokens=5, n=2)
    rig.run()
    rig.assert_right(request)
    assert not any(batch.copies for batch in rig.runner.batches)


def test_one_more_sequence_of_choices_than_blocks_runs_one_after_the_other() -> None:
    rig = Rig(num_blocks=3)
    request = rig.submit("a", [1] * 6, max_tokens=6, n=4)
    rig.run()
    rig.assert_right(request)
    assert rig.stats.preemptions


def test_a_known_prompt_computes_its_last_token_only() -> None:
    rig = Rig()
    rig.submit("a", [1] * 8, max_tokens=1)
    rig.run()
    again = rig.submit("b", [1] * 8, max_tokens=3)
    assert rig.shape() == [("b", 4, 4)]  # a whole block, as blocks are the unit
    rig.run()
    rig.assert_right(again)
    assert rig.submit("c", [1] * 9, max_tokens=1)
    assert rig.shape() == [("c", 8, 1)]
    stats = rig.stats
    assert (stats.prompt_tokens, stats.local_compute, stats.local_cache_hit) == (25, 8 + 4 + 1, 4 + 8)


def test_a_prompt_is_not_found_before_it_is_computed() -> None:
    rig = Rig(max_batched_tokens=100)
    rig.submit("a", [1] * 8)
    rig.submit("b", [1] * 8)
    assert rig.shape() == [("a", 0, 8), ("b", 0, 8)]


def test_answers_are_found_by_the_next_turn_of_a_conversation() -> None:
    rig = Rig()
    request = rig.submit("a", [1] * 3, max_tokens=6)
    rig.run()
    answer, _ = rig.answer("a")
    rig.submit("b", [*request.prompt, *answer, 5])
    assert rig.shape() == [("b", 8, 2)]


def test_max_tokens_counts_for_each_choice() -> None:
    rig = Rig()
    request = rig.submit("a", [1, 2], max_tokens=1, n=2)
    rig.run()
    assert [token.finish_reason for token in rig.tokens] == [FinishReason.LENGTH] * 2
    assert [token.token_id for token in rig.tokens] == first_tokens(request)


def test_a_stop_token_ends_its_choice_only() -> None:
    rig = Rig()
    request = make_request("a", [1, 2, 3], max_tokens=50, n=2)
    answers = [expected(request, index, 100)[0] for index in range(2)]
    stop = next(
        token for token in answers[0] if token in answers[1] and answers[0].index(token) != answers[1].index(token)
    )
    request = rig.submit("b", [1, 2, 3], max_tokens=50, n=2, stop_token_ids=frozenset({stop}))
    rig.run()
    rig.assert_right(request)
    assert rig.answer("b", 0)[0][-1] == rig.answer("b", 1)[0][-1] == stop
    assert rig.answer("b", 0)[1] == FinishReason.STOP


@pytest.mark.parametrize(("limits", "length"), [({"max_model_len": 13}, 13), ({"num_blocks": 3}, 13)])
def test_the_model_or_the_pool_ends_a_sequence(limits: dict[str, int], length: int) -> None:
    rig = Rig(**limits)
    request = rig.submit("a", [1] * 4, stop_token_ids=frozenset({VOCABULARY}))
    rig.run()
    answer, reason = rig.answer("a")
    assert (len(request.prompt) + len(answer), reason) == (length, FinishReason.LENGTH)


def test_aborted_requests_are_gone_at_every_stage() -> None:
    rig = Rig(max_num_seqs=2)
    rig.submit("prompt", [1] * 20)
    rig.submit("choices", [2], n=2)
    rig.submit("waiting", [3])
    rig.step()
    rig.scheduler.abort("waiting")
    rig.scheduler.abort("prompt")
    assert rig.shape() == [("choices", 0, 1)]
    assert len(rig.shape()) == 2
    rig.scheduler.abort("choices")
    rig.scheduler.abort("choices")
    assert rig.scheduler.schedule() is None
    assert rig.ended == ["waiting", "prompt", "choices"]
    assert rig.stats.blocks_free == 16


def test_an_aborted_preempted_sequence_is_gone() -> None:
    rig = Rig(num_blocks=4, prefix_caching=False)
    rig.submit("old", [1] * 4, max_tokens=12)
    rig.submit("young", [2] * 4)
    while not rig.stats.preemptions:
        rig.step()
    rig.scheduler.abort("young")
    rig.run()
    assert rig.ended == ["young", "old"]


def test_limits_are_checked() -> None:
    with pytest.raises(EngineError, match="max_batched_tokens"):
        Rig(max_batched_tokens=3)
