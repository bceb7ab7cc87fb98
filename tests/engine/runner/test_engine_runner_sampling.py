import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.runner.sampler import Draw, _least_kept, sample
from engine.scheduler.batch import Batch, Chunk
from engine.scheduler.request import SamplingParams
from tests.engine.generation import blocks_in_random_order, decode, load, make_runner, prefill, sequence

LOGITS = torch.randn(64, 3000, generator=torch.Generator().manual_seed(3)) * 3


def params(**values):
    return SamplingParams(max_tokens=16, **values)


def draw(position=7, choice=0, **values):
    return Draw(params(**values), choice, position)


def test_greedy_takes_the_best():
    rows = LOGITS[:5]
    assert sample(rows, [draw(temperature=0.0, seed=i) for i in range(5)]) == rows.argmax(-1).tolist()


@given(st.data())
def test_a_token_does_not_depend_on_its_batch(data):
    """Nor on its place in it."""
    rows = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=6))
    draws = [
        Draw(
            params(
                temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
                top_k=data.draw(st.sampled_from([0, 1, 5, 2000])),
                top_p=data.draw(st.sampled_from([0.1, 0.9, 1.0])),
                seed=data.draw(st.integers(-(2**63), 2**64 - 1)),
            ),
            data.draw(st.integers(0, 5)),
            data.draw(st.integers(1, 10_000)),
        )
        for _ in rows
    ]
    assert sample(LOGITS[rows], draws) == [
        sample(LOGITS[row : row + 1], [one])[0] for row, one in zip(rows, draws, strict=True)
    ]


@pytest.mark.parametrize("changed", [{"seed": 2}, {"choice": 1}, {"position": 8}])
def test_seed_choice_and_position_each_make_other_tokens(changed):
    rows = torch.zeros(32, 3000)
    base = {"seed": 1, "choice": 0, "position": 7}
    one, same, other = (sample(rows, [draw(**values)] * 32) for values in (base, base, {**base, **changed}))
    assert one == same
    assert one != other
    assert len(set(one)) == 1  # the same draw in every row


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    count = 4000
    tokens = sample(logits.expand(count, -1), [draw(p, temperature=temperature) for p in range(count)])
    seen = Counter(tokens)
    for token, share in enumerate((logits / temperature).softmax(-1).tolist()):
        assert abs(seen[token] / count - share) < 4 * math.sqrt(share / count)


def test_filters_leave_what_they_promise():
    count = 200
    logits = LOGITS[:1].expand(count, -1)
    order = LOGITS[0].argsort(descending=True).tolist()

    def drawn(**values):
        return set(sample(logits, [draw(p, temperature=3.0, **values) for p in range(count)]))

    assert drawn(top_k=1) == {order[0]}
    assert drawn(top_p=0.0) == {order[0]}
    assert drawn(top_k=4) <= set(order[:4])
    assert len(drawn(top_k=4)) == 4
    assert len(drawn()) > 50


@given(
    rows=st.lists(st.integers(0, 63), min_size=1, max_size=4),
    top_k=st.lists(st.integers(0, 4000), min_size=4, max_size=4),
    top_p=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    flat=st.floats(0.01, 5),
)
def test_the_least_kept_score_is_found(rows, top_k, top_p, flat):
    """Against sorting everything, row by row."""
    scores = LOGITS[rows] / flat
    samplings = [params(top_k=k, top_p=p) for k, p in zip(top_k, top_p, strict=False)][: len(rows)]
    least = _least_kept(scores, samplings)
    for row, sampling in enumerate(samplings):
        best = scores[row].sort(descending=True).values[: sampling.top_k or None]
        shares = best.softmax(-1)
        kept = int((shares.cumsum(-1) - shares < sampling.top_p - 1e-5).sum()) or 1
        kept_at_most = int((shares.cumsum(-1) - shares < sampling.top_p + 1e-5).sum()) or 1
        assert best[kept_at_most - 1] <= least[row, 0] <= best[kept - 1]


def test_extreme_temperatures_and_logits():
    logits = torch.full((2, 300), -torch.inf)
    logits[:, 17] = 1e4
    assert sample(logits, [draw(temperature=1e-6), draw(temperature=1e6)]) == [17, 17]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


WARM = params(temperature=1.0, seed=42)
PROMPT = list(range(3, 40))


def _generate(runner, blocks, index, steps):
    seq = sequence(PROMPT, blocks, sampling=WARM, index=index)
    prefill(runner, seq)
    decode(runner, [seq], steps)
    return seq.tokens[len(PROMPT) :]


def test_choices_of_one_prompt(model):
    """The last chunk of a prompt gives each choice its first token: the one that it would get alone."""
    runner, blocks = make_runner(model), blocks_in_random_order(400)
    seq = sequence(PROMPT, blocks, sampling=WARM)
    tokens = runner.execute(Batch([Chunk(seq, 0, 20, 0)]))
    assert tokens == [[]]
    other = sequence(PROMPT[:9], blocks)
    first, single = runner.execute(Batch([Chunk(seq, 20, 17, 4), Chunk(other, 0, 9, 1)]))
    assert len(single) == 1
    assert len(set(first)) > 1
    assert first == [_generate(runner, blocks, index, 0)[0] for index in range(4)]


def test_a_sampled_sequence_goes_on_alike_in_another_process(model):
    """Here, another runner: as after a hand-over from prefill to decode, or a preemption."""
    whole = _generate(make_runner(model), blocks_in_random_order(400), 2, 20)
    seq = sequence(PROMPT, blocks_in_random_order(400, seed=9), sampling=WARM, index=2)
    seq.tokens += whole[:8]
    runner = make_runner(model)
    prefill(runner, seq, 10)
    decode(runner, [seq], 12)
    assert seq.tokens[len(PROMPT) :] == whole
