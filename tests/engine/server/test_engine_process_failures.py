"""A pair of real engines of which one dies, stops, or is full: what the other's leg answers; no block is lost."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from engine_mains import HELD, IMPATIENT
from engine_process import legs, pair_info

TEXT = "/v1/completions"
RECOVERY_S = 15
AT_ONCE_S = 5  # far below every limit of a wait


@pytest.fixture(scope="module")
def start(start):
    """Engines whose tokens do not depend on what is computed beside them: bfloat16's last bits do."""
    return partial(start, "--dtype", "float32")


def post(engine, prefill, decode, request_id):
    """Post one leg alone."""
    body = {"prompt": "abc", "stream": True, "request_id": request_id}
    return engine.post(TEXT, {**body, "disaggregate_info": pair_info(prefill, decode)})


def statuses(answers):
    return [answer and answer.status_code for answer in answers]


@pytest.mark.parametrize("victim", [0, 1], ids=["prefill", "decode"])
def test_when_one_dies_while_prefill_computes_the_others_leg_fails_at_once(start, pair, token_file, tmp_path, victim):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    flags = ("--splitwise-role", "prefill", "--max-num-batched-tokens", "64")
    with (
        start(*flags, env={**token_file, "HELD_AT": str(pipe)}, main=("-c", HELD)) as prefill,
        start("--splitwise-role", "decode", env=token_file) as decode,
        ThreadPoolExecutor() as threads,
    ):
        both = (prefill.ready(), decode.ready())
        answers = threads.submit(legs, *both, "dies", prompt=[100] * 80, stream=True)
        with pipe.open("w"):  # prefill has come to its second chunk, and stays there
            both[victim].signal(signal.SIGKILL)
            answers = answers.result(AT_ONCE_S)
        assert answers[victim] is None
        survivor = both[1 - victim]
        assert answers[1 - victim].status_code == 502
        lost = f"{('prefill', 'decode')[victim]} 127.0.0.1:{both[victim].ports['api']} is lost"
        assert lost in answers[1 - victim].json()["error"]["message"]
        survivor.until_idle()
        partners = (prefill, pair[1]) if victim else (pair[0], decode)
        assert statuses(legs(*partners, "next", prompt=[100] * 80, max_tokens=3)) == [200, 200]


def test_a_full_decode_pool_makes_requests_wait_and_loses_no_block(start, mixed, pair, token_file):
    """Each takes six of the eight blocks: prefill waits for the grant of each before it computes anything."""
    prefill, _ = pair
    body = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    prompts = [[100 + i] * 60 for i in range(6)]
    flags = ("--splitwise-role", "decode", "--num-gpu-blocks-override", "8", "--max-model-len", "128")
    with start(*flags, env=token_file) as decode, ThreadPoolExecutor() as threads:
        decode.ready()
        asked = [threads.submit(legs, prefill, decode, f"full-{i}", prompt=p, **body) for i, p in enumerate(prompts)]
        answers = [both.result() for both in asked]
        assert [statuses(both) for both in answers] == [[200, 200]] * 6
        for prompt, (_, second) in zip(prompts, answers, strict=True):
            assert second.json()["choices"] == mixed.post(TEXT, {"prompt": prompt, **body}).json()["choices"]
        prefill.until_idle()
        decode.until_idle()


@pytest.mark.parametrize("victim", [0, 1], ids=["prefill", "decode"])
def test_a_short_stop_only_delays(pair, victim):
    pair[victim].signal(signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        answers = threads.submit(legs, *pair, f"delayed-{victim}", prompt="abc", max_tokens=3)
        pair[victim].signal(signal.SIGCONT)
        assert statuses(answers.result()) == [200, 200]


@pytest.fixture
def impatient(start, token_file):
    options = {"env": token_file, "main": ("-c", IMPATIENT)}
    with (
        start("--splitwise-role", "prefill", **options) as prefill,
        start("--splitwise-role", "decode", **options) as decode,
    ):
        yield prefill.ready(), decode.ready()


@pytest.mark.parametrize("victim", [0, 1], ids=["prefill", "decode"])
def test_one_that_is_stopped_for_long_is_given_up_and_serves_again_when_it_goes_on(impatient, victim):
    assert statuses(legs(*impatient, "before", prompt="abc", max_tokens=3)) == [200, 200]
    impatient[victim].signal(signal.SIGSTOP)
    answer = post(impatient[1 - victim], *impatient, "stopped")
    assert answer.status_code == 502
    assert "it has been silent for 1 s" in answer.json()["error"]["message"]
    impatient[victim].signal(signal.SIGCONT)
    deadline = time.monotonic() + RECOVERY_S
    while statuses(legs(*impatient, "after", prompt="abc", max_tokens=3)) != [200, 200]:
        assert time.monotonic() < deadline
    for engine in impatient:
        engine.until_idle()


def test_a_prefill_engine_that_was_never_heard_of_is_waited_for_no_longer_than_a_silent_one(impatient, pair):
    answer = post(impatient[1], pair[0], impatient[1], "nobody")
    assert answer.status_code == 504
    assert "waited 1 s for prefill 127.0.0.1" in answer.json()["error"]["message"]
