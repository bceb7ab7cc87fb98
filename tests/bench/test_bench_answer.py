import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.bench.answer import AnswerReader


def sse(event):
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def chat(text=None, role=None, finish=None, usage=None):
    delta = {key: value for key, value in (("role", role), ("content", text)) if value is not None}
    event = {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return sse(event | ({"usage": usage} if usage else {}))


def usage(prompt, completion):
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def read(*timed, keep_text=False):
    reader = AnswerReader(keep_text=keep_text)
    for now, data in timed:
        reader.feed(data, now)
    return reader.answer


def test_times_and_gaps_of_a_chat_stream():
    answer = read(
        (1.0, chat("", role="assistant")),
        (2.0, chat("Par")),
        (2.5, chat("is")),
        (3.5, chat(".", finish="stop") + sse({"choices": [], "usage": usage(7, 3)})),
        (3.6, b"data: [DONE]\n\n"),
        keep_text=True,
    )
    assert (answer.first, answer.last, answer.gaps) == (2.0, 3.5, [0.5, 1.0])
    assert (answer.input_tokens, answer.output_tokens, answer.chunks) == (7, 3, 3)
    assert answer.finished
    assert not answer.usage_per_chunk
    assert "".join(answer.texts) == "Paris."


def test_completions_stream():
    def choice(text, finish=None):
        return sse({"choices": [{"text": text, "finish_reason": finish}]})

    answer = read((1.0, choice("a")), (1.2, choice("b")), (1.3, choice("", "length")))
    assert (answer.first, answer.last, answer.chunks) == (1.0, 1.3, 2)
    assert answer.gaps == [pytest.approx(0.2)]
    assert answer.output_tokens is None


def test_role_chunk_is_not_the_first_token_but_a_token_without_text_is():
    assert read((1.0, chat("", role="assistant"))).first is None
    assert read((1.0, chat("", role="assistant")), (2.0, chat(""))).first == 2.0


def test_a_single_token_without_text_comes_with_the_finish_reason():
    answer = read((1.0, chat("", role="assistant")), (2.0, chat("", finish="length")))
    assert (answer.first, answer.last, answer.gaps) == (2.0, 2.0, [])


def test_usage_in_every_chunk_spreads_a_gap_over_its_tokens():
    answer = read(
        (0.5, chat("", role="assistant", usage=usage(5, 0))),
        (1.0, chat("a", usage=usage(5, 1))),
        (1.9, chat("bcd", usage=usage(5, 4))),
        (2.0, chat("", finish="stop", usage=usage(5, 4))),
    )
    assert answer.usage_per_chunk
    assert answer.gaps == [pytest.approx(0.3)] * 3
    assert answer.output_tokens == 4


def test_usage_in_the_last_chunk_only_is_not_taken_for_that_chunks_tokens():
    answer = read((1.0, chat("a")), (2.0, chat("b")), (3.0, chat("c", finish="stop", usage=usage(5, 3))))
    assert not answer.usage_per_chunk
    assert answer.gaps == [1.0, 1.0]


def test_reasoning_and_tool_calls_are_output():
    assert read((1.0, sse({"choices": [{"delta": {"reasoning_content": "hm"}}]}))).chunks == 1
    call = {"delta": {"role": "assistant", "tool_calls": [{"index": 0, "function": {"name": "f"}}]}}
    assert read((1.0, sse({"choices": [call]}))).first == 1.0


def test_error_events_and_garbage_fail_the_answer():
    answer = read((1.0, chat("a")), (2.0, sse({"error": {"message": "decode died", "code": 502}})))
    assert answer.error_kind == "error event"
    assert "decode died" in answer.error
    for nonsense in (b"{nonsense", b'{"choices": [{"text": "\xff"}]}', b'{"error":' + b"[" * 100_000):
        assert read((1.0, b"data: %b\n\n" % nonsense)).error_kind == "malformed"


def test_comments_and_other_fields_are_skipped():
    assert read((1.0, b": ping\n\nevent: x\nid: 1\n" + chat("a"))).chunks == 1


def test_tokens_are_reported_as_they_come():
    counts = []
    reader = AnswerReader(on_tokens=counts.append)
    reader.feed(chat("a", usage=usage(5, 1)) + chat("bc", usage=usage(5, 3)), 1.0)
    assert counts == [1, 2]


STREAM = (
    chat("", role="assistant")
    + b": comment\r\n\r\n"
    + chat("é\n\ndata: x").replace(b"\n\n", b"\r\n\r\n")
    + chat("b", finish="stop")
    + sse({"choices": [], "usage": usage(4, 2)})
    + b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_how_the_stream_is_cut_does_not_matter(cuts):
    reader = AnswerReader(keep_text=True)
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        reader.feed(STREAM[start:end], 1.0)
    answer = reader.answer
    assert "".join(answer.texts) == "é\n\ndata: xb"
    assert (answer.chunks, answer.input_tokens, answer.output_tokens, answer.finished) == (2, 4, 2, True)
    assert answer.error_kind is None
