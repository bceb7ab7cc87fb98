"""A stream that broke on another engine is taken up: its client gets exactly what it lacks."""

import asyncio
import json
import random
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_client import CHAT, HI, TEXT, ask, chunks, events
from server_fakes import EOS, ByteTokenizer

from engine.scheduler.request import FinishReason, Token
from engine.server.answer import Answer
from engine.server.job import job_of
from engine.server.metrics import ServerMetrics
from engine.server.protocol import CompletionRequest, Resume
from engine.server.replay import begin
from engine.server.state import Backend

TOKENIZER = ByteTokenizer()
BACKEND = Backend(None, TOKENIZER, 128, TOKENIZER.vocab_size)
PROMPT = [10, 11, 12]
HELLO = TOKENIZER.encode("Hello")


class Generation:
    """What an engine generates of a job, whatever of it was generated elsewhere; in batches of random size."""

    def __init__(self, job, ids, seed):
        self._tokens = list(self._generate(job, ids[len(job.request.prompt) - len(PROMPT) :]))
        self._random = random.Random(seed)

    def _generate(self, job, ids):
        sampling = job.request.sampling
        for count, token_id in enumerate(ids, 1):
            reason = FinishReason.LENGTH if count == sampling.max_tokens else None
            reason = FinishReason.STOP if token_id in sampling.stop_token_ids else reason
            yield Token("r", 0, token_id, reason, cached_tokens=len(job.request.prompt) - 1)
            if reason:
                return

    async def take(self):
        size = self._random.randint(1, 3)
        taken, self._tokens = self._tokens[:size], self._tokens[size:]
        assert taken, "asked for tokens after the end"
        return taken


def body_of(**fields):
    return CompletionRequest(prompt="", stream=True, return_token_ids=True, request_id="r", **fields)


def run(body, ids, seed):
    """Return the pieces of an answer, and its usage."""

    async def run():
        job = job_of(body, PROMPT, body.max_tokens, BACKEND, "m", time.monotonic())
        choices = await begin(job, TOKENIZER.decode)
        answer = Answer(job, Generation(job, ids, seed), choices, ServerMetrics())
        return [piece async for pieces in answer.pieces() for piece in pieces], answer.usage

    return asyncio.run(run())


# Bytes of a few characters of one, two and three bytes, so that they make text, half characters, and nonsense.
ids = st.lists(st.sampled_from([*TOKENIZER.encode("ab €é"), EOS]), min_size=40, max_size=40)
stop_strings = st.lists(st.text(alphabet="ab €é\ufffd", min_size=1, max_size=4), max_size=3)


@given(ids, stop_strings, st.integers(1, 40), st.booleans(), st.integers(0, 10**6))
def test_cut_anywhere_and_resumed_the_answer_is_the_same(ids, stops, max_tokens, ignore_eos, seed):
    body = body_of(stop=stops or None, max_tokens=max_tokens, ignore_eos=ignore_eos)
    pieces, usage = run(body, ids, seed)
    sent = [token for piece in pieces for token in piece.token_ids]
    assert sent == ids[: len(sent)]
    assert len(sent) == usage.completion_tokens
    for cut in range(len(pieces) + 1):
        had = [token for piece in pieces[:cut] for token in piece.token_ids]
        rest, total = run(replace_fields(body, resume=Resume("r", 5, had)), ids, seed + 1)
        assert had + [token for piece in rest for token in piece.token_ids] == sent
        assert "".join(p.text for p in [*pieces[:cut], *rest]) == "".join(p.text for p in pieces)
        assert [piece.finish_reason for piece in rest][-1] == pieces[-1].finish_reason
        assert (total.prompt_tokens, total.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
        assert total.prompt_tokens_details.cached_tokens <= len(PROMPT)


def replace_fields(body, **changes):
    return CompletionRequest(**{**{name: getattr(body, name) for name in body.__struct_fields__}, **changes})


def test_a_long_replay_gives_the_same_as_a_short_one():
    ids = TOKENIZER.encode("€" * 100)
    choice = asyncio.run(begin(replace(JOB, resumed=ids[:200]), TOKENIZER.decode))[0]
    assert (choice.num_tokens, choice.finish_reason) == (200, None)
    assert choice.push(Token("r", 0, ids[200], None)) == "€"  # two of its three bytes had come


JOB = job_of(body_of(max_tokens=100), PROMPT, 100, BACKEND, "m", 0.0)


def resume(ids=HELLO, **changes):
    return {"id": "first", "created": 1234, "token_ids": ids, **changes}


async def test_the_core_goes_on_from_the_prompt_and_what_is_resumed(client, core):
    core.answer = ", world!"
    body = {"messages": HI, "max_tokens": 20, "stream_options": {"include_usage": True}}
    stream = chunks(await events(client, CHAT, **body, request_id="second", resume=resume()))
    assert {(chunk["id"], chunk["created"]) for chunk in stream} == {("chatcmpl-first", 1234)}
    assert all("role" not in choice["delta"] for chunk in stream for choice in chunk["choices"])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream[:-1]) == ", world!"
    prompt = TOKENIZER.encode("<user>hi")
    assert stream[-1]["usage"]["prompt_tokens"] == len(prompt)
    assert stream[-1]["usage"]["completion_tokens"] == len("Hello, world!") + 1
    [request] = core.requests
    assert request.prompt == prompt + HELLO
    assert request.sampling.max_tokens == 20 - len(HELLO)


async def test_without_a_seed_it_comes_of_the_first_attempts_id(client, core):
    await ask(client, TEXT, prompt="x", request_id="first")
    await events(client, TEXT, prompt="x", request_id="second", resume=resume())
    await events(client, TEXT, prompt="x", request_id="third", resume=resume(), seed=7)
    first, second, third = (request.sampling.seed for request in core.requests)
    assert first == second != third == 7


async def test_nothing_but_the_opening_had_come(client, core):
    stream = chunks(await events(client, CHAT, messages=HI, resume=resume([])))
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in stream)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream) == "Hello, world!"


ENDED = [
    ({"max_tokens": 5}, HELLO, "length"),
    ({"max_tokens": 9}, [*HELLO, EOS], "stop"),
    ({"max_tokens": 9, "stop": "lo"}, HELLO, "stop"),
    ({"max_tokens": 5, "stop": "lo"}, HELLO, "stop"),
    ({"max_tokens": 9, "stop_token_ids": [HELLO[-1]]}, HELLO, "stop"),
    ({"max_tokens": 200}, HELLO * 25, "length"),  # the model's length
]


@pytest.mark.parametrize(("options", "ids", "reason"), ENDED)
async def test_what_has_ended_is_told_to_have_ended_and_nothing_is_computed(client, core, options, ids, reason):
    options |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
    last, usage = chunks(await events(client, TEXT, prompt="abc", **options, resume=resume(ids)))
    [choice] = last["choices"]
    assert (choice["text"], choice["finish_reason"], choice["token_ids"]) == ("", reason, [])
    assert usage["usage"]["completion_tokens"] == len(ids)
    assert core.requests == []
    assert core.aborted == []


REFUSED = [
    ({"resume": resume(), "stream": False}, "resume", "stream"),
    ({"resume": resume(), "n": 2}, "resume", "n: 1"),
    ({"resume": resume([257])}, "resume", "257 is not a token id"),
    ({"resume": resume([-1])}, "resume.token_ids[0]", ">= 0"),
    ({"resume": resume("x")}, "resume.token_ids", "array"),
    ({"resume": resume(id="")}, "resume.id", "length"),
    ({"resume": resume(created=1.5)}, "resume.created", "int"),
    ({"resume": {"id": "a", "created": 1}}, "resume", "token_ids"),
    ({"resume": []}, "resume", "object"),
    ({"resume": resume(), "max_tokens": 4}, "resume", "5 tokens, but max_tokens allows 4"),
    ({"resume": resume([EOS, 1])}, "resume", r"ends \(stop\) with token 1 of 2"),
    ({"resume": resume(), "stop": "el"}, "resume", r"ends \(stop\) with token 3 of 5"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
async def test_what_cannot_be_resumed_is_refused_by_name(client, core, fields, param, words):
    status, body = await ask(client, TEXT, **{"prompt": "abc", "stream": True, **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert re.search(words, body["error"]["message"])
    assert core.requests == []


async def test_what_is_longer_than_the_model_takes_is_refused_as_a_long_prompt_is(client, core):
    status, body = await ask(client, TEXT, prompt="abc", stream=True, max_tokens=200, resume=resume([1] * 126))
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "126" in body["error"]["message"]


async def test_a_stream_carries_all_token_ids_in_plain_bytes_and_each_write_whole_events(client, core):
    core.answer = "one € ST two"
    body = {"messages": HI, "stop": "STOP", "stream": True, "return_token_ids": True}
    async with client.post(CHAT, json=body) as response:
        writes = [data async for data, _ in response.content.iter_chunks()]
    assert all(write.startswith(b"data: ") and write.endswith(b"\n\n") for write in writes)
    opening, *pieces, done = b"".join(writes).removesuffix(b"\n\n").split(b"\n\n")
    assert b"token_ids" not in opening
    assert done == b"data: [DONE]"
    found = [re.search(rb'"token_ids":(\[[0-9,]*\])', piece) for piece in pieces]
    assert [token for match in found for token in json.loads(match[1])] == [*TOKENIZER.encode(core.answer), EOS]
