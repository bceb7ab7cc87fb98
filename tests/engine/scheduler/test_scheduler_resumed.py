"""What is resumed is a prompt with the generated tokens at its end: from there on all is as it would have been."""

import pytest

from tests.engine.scheduler.fake_runner import expected
from tests.engine.scheduler.rig import Rig, make_request

PROMPT = [1] * 9


@pytest.mark.parametrize("max_tokens", [12, 1000])
@pytest.mark.parametrize("transferred", [False, True])
def test_wherever_it_was_cut_the_rest_and_the_end_are_the_same(max_tokens: int, transferred: bool) -> None:
    rig = Rig(num_blocks=8)
    tokens, reason = expected(make_request("whole", PROMPT, max_tokens), 0, rig.limits.max_length)
    assert len(tokens) >= 12
    for cut in range(len(tokens) - 1):
        request = make_request(f"cut-{cut}", PROMPT + tokens[:cut], max_tokens - cut)
        if transferred:
            rig.decode(request, rig.reserve(request.request_id, request.prompt))
        else:
            rig.scheduler.submit(request)
        rig.run()
        assert rig.answer(request.request_id) == (tokens[cut:], reason)
        assert rig.stats.blocks_free == 8


def test_what_was_generated_here_is_found_in_the_cache_when_it_is_resumed_here() -> None:
    rig = Rig()
    request = rig.submit("whole", PROMPT, 12)
    rig.run()
    tokens, _ = rig.answer("whole")
    computed = rig.stats.local_compute
    rig.submit("again", request.prompt + tokens[:8], 4)  # 17 tokens: four whole blocks, and the one to be sampled
    rig.run()
    assert rig.answer("again")[0] == tokens[8:]
    assert rig.stats.local_cache_hit == 16
    assert rig.stats.local_compute == computed + 1


def test_resumed_sequences_that_are_preempted_go_on_as_well() -> None:
    rig = Rig(num_blocks=6)
    whole = [make_request(name, [number] * 2, 16) for number, name in enumerate("ab")]
    answers = [expected(request, 0, rig.limits.max_length)[0] for request in whole]
    for request, tokens in zip(whole, answers, strict=True):
        rig.submit(request.request_id, request.prompt + tokens[:3], 13)
    rig.run()
    assert rig.stats.preemptions >= 1
    assert [rig.answer(request.request_id)[0] for request in whole] == [tokens[3:] for tokens in answers]
    assert rig.stats.blocks_free == 6
