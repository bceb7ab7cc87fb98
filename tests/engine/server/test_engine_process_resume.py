"""Streams of real engines, cut and resumed on others: the client cannot tell."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from engine_mains import DYING
from engine_process import legs, pair_info

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
SOURCE = 'pdctl:prompt_tokens_by_source_total{source="%s"}'

GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.8}  # the seed comes of the request's id
SEEDED = {"temperature": 0.8, "seed": 11}
BODY = {
    "messages": [{"role": "user", "content": "Tell me of foxes and dogs"}],
    "max_tokens": 40,
    "ignore_eos": True,
    "stop": ["\x00\x01never", "ab zz"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}


class Stream:
    """What came of one stream; perhaps not all."""

    def __init__(self, text):
        whole = text[: text.rindex("\n\n")]
        self.done = whole.endswith("data: [DONE]")
        chunks = [json.loads(line.removeprefix("data: ")) for line in whole.split("\n\n") if not line.endswith("]")]
        self.names = {(chunk["id"], chunk["created"]) for chunk in chunks}
        self.choices = [choice for chunk in chunks for choice in chunk["choices"]]
        self.usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
        self.opened = "role" in self.choices[0]["delta"]

    @property
    def ids(self):
        return [token for choice in self.choices for token in choice.get("token_ids", [])]

    @property
    def text(self):
        return "".join(choice["delta"].get("content", "") for choice in self.choices)

    @property
    def reason(self):
        return self.choices[-1]["finish_reason"]

    def cut(self, events):
        """What its client has after that many events, as the field `resume`, and the text of it."""
        had = self.choices[:events]
        ids = [token for choice in had for token in choice.get("token_ids", [])]
        [(name, created)] = self.names
        resume = {"id": name.removeprefix("chatcmpl-"), "created": created, "token_ids": ids}
        return resume, "".join(choice["delta"].get("content", "") for choice in had)


def check_rest(stream, events, rest):
    """Check what the resuming engine has sent against what the client lacks."""
    resume, had = stream.cut(events)
    assert rest.done
    assert not rest.opened
    assert rest.names == stream.names
    assert resume["token_ids"] + rest.ids == stream.ids
    assert had + rest.text == stream.text
    assert rest.reason == stream.reason
    [ours], [theirs] = rest.usage, stream.usage
    assert {**ours, "prompt_tokens_details": None} == {**theirs, "prompt_tokens_details": None}


@pytest.fixture(scope="module")
def start(start):
    """Engines whose tokens do not depend on what is computed beside them: bfloat16's last bits do."""
    return partial(start, "--dtype", "float32")


@pytest.fixture(scope="module", params=[GREEDY, SAMPLED, SEEDED], ids=["greedy", "sampled", "seeded"])
def original(request, mixed):
    """A body, and its whole stream."""
    body = {**BODY, **request.param}
    answer = mixed.post(CHAT, {**body, "request_id": f"first-{request.param_index}"})
    stream = Stream(answer.text)
    assert (len(stream.ids), stream.reason, stream.done, stream.opened) == (40, "length", True, True)
    return body, stream


CUTS = [1, 2, 9, -2, -1]  # after the opening, after the first piece, ...; before the last, and before the usage alone


@pytest.mark.parametrize("events", CUTS)
def test_a_mixed_engine_resumes(mixed, original, events):
    body, stream = original
    events %= len(stream.choices) + 1
    rest = mixed.post(CHAT, {**body, "resume": stream.cut(events)[0], "request_id": f"second-{events}"})
    check_rest(stream, events, Stream(rest.text))


@pytest.mark.parametrize("events", CUTS)
def test_a_pair_resumes(pair, original, events):
    body, stream = original
    events %= len(stream.choices) + 1
    first, second = legs(*pair, f"third-{events}", CHAT, **body, resume=stream.cut(events)[0])
    assert first.status_code == 200
    check_rest(stream, events, Stream(second.text))
    for engine in pair:
        engine.until_idle()


def test_a_decode_engine_resumes_alone(pair, original):
    _, decode = pair
    body, stream = original
    before = decode.metrics()
    rest = decode.post(CHAT, {**body, "resume": stream.cut(9)[0], "prefill_on_decode": True})
    check_rest(stream, 9, Stream(rest.text))
    decode.until_idle()
    after = decode.metrics()
    assert after[SOURCE % "kv_transfer"] == before[SOURCE % "kv_transfer"]


def test_a_prompt_computed_by_decode_is_counted_as_computed_there_and_found_again(pair, mixed):
    _, decode = pair
    body = {"prompt": list(range(100, 150)), "max_tokens": 5, "temperature": 0}
    before = decode.metrics()
    answers = [decode.post(TEXT, {**body, "prefill_on_decode": True}).json() for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"] == mixed.post(TEXT, body).json()["choices"]
    assert answers[1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 48}
    after = decode.metrics()
    new = {source: after[SOURCE % source] - before[SOURCE % source] for source in ("local_compute", "local_cache_hit")}
    assert new == {"local_compute": 52, "local_cache_hit": 48}
    assert after[SOURCE % "kv_transfer"] == before[SOURCE % "kv_transfer"]


def test_a_pair_computes_what_is_resumed_once_where_it_is_cached(pair):
    """Prefill finds the prompt in its cache, and decode takes only what it lacks."""
    prefill, decode = pair
    body = {**BODY, **GREEDY, "messages": [{"role": "user", "content": "x" * 90}]}
    stream = Stream(legs(*pair, "cached-1", CHAT, **body)[1].text)
    before = prefill.metrics(), decode.metrics()
    events = len(stream.choices) // 2
    _, second = legs(*pair, "cached-2", CHAT, **body, resume=stream.cut(events)[0])
    check_rest(stream, events, Stream(second.text))
    computed = prefill.metrics()[SOURCE % "local_compute"] - before[0][SOURCE % "local_compute"]
    moved = decode.metrics()[SOURCE % "kv_transfer"] - before[1][SOURCE % "kv_transfer"]
    had = len(stream.cut(events)[0]["token_ids"])
    assert 0 < had < 40
    assert had <= computed < had + 16  # a prompt's last block is not whole
    assert 0 <= moved < 16  # less than a block: decode keeps what it has generated, too


def test_a_stream_whose_decode_engine_is_killed_goes_on_elsewhere(start, mixed, pair, token_file):
    prefill, decode = pair
    body = {**BODY, **SAMPLED, "max_tokens": 150}
    whole = Stream(mixed.post(CHAT, {**body, "request_id": "killed"}).text)
    with start("--splitwise-role", "decode", env=token_file, main=("-c", DYING)) as dying:
        dying.ready()
        had = broken_stream(prefill, dying, {**body, "request_id": "killed"})
    assert not had.done
    assert 0 < len(had.ids) < 150
    events = len(had.choices)
    _, second = legs(prefill, decode, "killed/2", CHAT, **body, resume=had.cut(events)[0])
    rest = Stream(second.text)
    assert had.ids + rest.ids == whole.ids
    assert had.text + rest.text == whole.text
    assert rest.names == had.names
    assert rest.done


def broken_stream(prefill, decode, body):
    """Return what came of a stream before its engine died."""
    body |= {"disaggregate_info": pair_info(prefill, decode)}
    parts = []
    with ThreadPoolExecutor() as threads:
        first = threads.submit(prefill.post, CHAT, body)
        with httpx.stream("POST", decode.url + CHAT, json=body, timeout=30) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.TransportError):
                parts.extend(response.iter_raw())
    assert first.result().status_code == 200
    return Stream(b"".join(parts).decode())
