"""What can never work is refused at once, with what to do about it."""

import pytest

from engine.errors import EngineError, RequestError
from engine.scheduler.limits import Limits

LIMITS = Limits(block_size=4, num_blocks=8, max_num_seqs=4, max_batched_tokens=16, max_model_len=40)


@pytest.mark.parametrize("field", Limits._fields)
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(EngineError, match=f"at least 1.*{field}=0"):
        LIMITS._replace(**{field: 0}).check()


def test_a_step_has_a_token_for_each_sequence() -> None:
    LIMITS._replace(max_batched_tokens=4).check()
    with pytest.raises(EngineError, match=r"max_batched_tokens \(3\) is less than max_num_seqs \(4\)"):
        LIMITS._replace(max_batched_tokens=3).check()


def test_prompts_fit_the_model_with_a_token_to_spare() -> None:
    limits = LIMITS._replace(num_blocks=100)
    limits.check_request([0] * 39)
    with pytest.raises(RequestError, match=r"40 tokens.* context length of 40") as refusal:
        limits.check_request([0] * 40)
    assert (refusal.value.status, refusal.value.code) == (400, "context_length_exceeded")


def test_prompts_fit_the_pool() -> None:
    LIMITS.check_request([0] * 32)
    with pytest.raises(RequestError, match=r"33 tokens need 9 KV blocks and this engine has 8") as refusal:
        LIMITS.check_request([0] * 33)
    assert refusal.value.status == 400


def test_empty_prompts_and_too_many_choices_are_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        LIMITS.check_request([])
    LIMITS.check_request([0], n=4)
    with pytest.raises(RequestError, match="n is 5"):
        LIMITS.check_request([0], n=5)


def test_a_sequence_ends_where_the_model_or_the_pool_does() -> None:
    assert LIMITS.max_length == 33
    assert LIMITS._replace(num_blocks=10).max_length == 40
