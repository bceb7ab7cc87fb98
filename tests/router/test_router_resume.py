"""What the router learns of a stream, so that another pair can go on with it: the same, however the bytes arrive."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_protocol_mocks import DONE, failed_event, token_event

from pdctl.router.requests.resume import ResumableStream

TRAPS = [
    '"token_ids":[1]',
    '\\"token_ids\\":[1]',
    '\\\\"token_ids":[1,2]',
    "data: [DONE]",
    'event: error\ndata: {"error":{"type":"server_error"}}\n\n',
    '"server_error"',
    '"created":9',
    "\n\n",
    "é\U0001f600",
]
TEXTS = st.one_of(st.sampled_from(TRAPS), st.text(max_size=20))


@dataclass
class Sent:
    """A stream, and what should be learnt of it."""

    whole: bytes = b""
    tokens: list[int] = field(default_factory=list)

    def add(self, text: str, ids: list[int]) -> None:
        self.whole += token_event(text, *ids)
        self.tokens += ids


@st.composite
def streams(draw: st.DrawFn) -> Sent:
    sent = Sent()
    for _ in range(draw(st.integers(1, 6))):
        sent.add(draw(TEXTS), draw(st.lists(st.integers(0, 200_000), max_size=4)))
    return sent


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Any split of some bytes."""
    cuts = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def resumed(stream: ResumableStream) -> dict[str, object]:
    return json.loads(stream.resumption())


@given(st.data(), streams(), st.booleans())
def test_any_split_gives_the_same_events_and_tokens(data: st.DataObject, sent: Sent, done: bool):
    whole = sent.whole + (DONE if done else b"")
    stream = ResumableStream("r")
    passed = b"".join(stream.feed(piece) for piece in data.draw(pieces(whole)))
    assert passed == whole
    assert stream.tokens == len(sent.tokens)
    assert stream.complete == done
    assert stream.failure() is None
    assert resumed(stream) == {"id": "r", "created": 1760000000, "token_ids": sent.tokens}


@given(st.data(), streams(), st.integers(1))
def test_only_whole_events_are_passed_and_counted(data: st.DataObject, sent: Sent, left: int):
    """A stream that is cut anywhere: what has been passed is a beginning of it, and its tokens are known exactly."""
    last = token_event("the last", 7, 8, 9)
    cut = sent.whole + last[: left % len(last)]
    stream = ResumableStream("r")
    passed = b"".join(stream.feed(piece) for piece in data.draw(pieces(cut)))
    assert passed == sent.whole
    assert resumed(stream)["token_ids"] == sent.tokens
    assert not stream.complete
    assert stream.feed(last) == last, "what broke off is not mixed up with what comes from another engine"


@given(st.data(), streams(), st.sampled_from(["server_error", "invalid_request_error"]))
def test_an_error_is_the_same_error_however_it_arrives(data: st.DataObject, sent: Sent, kind: str):
    error = failed_event(kind, 'of "type":"server_error" \n\n')
    stream, passed = ResumableStream("r"), b""
    for piece in data.draw(pieces(sent.whole + error)):
        assert stream.failure() is None, "the error was seen before it was whole"
        passed += stream.feed(piece)
    if kind == "server_error":
        assert (passed, stream.failure(), stream.complete) == (sent.whole, error, False)
    else:
        assert (passed, stream.failure(), stream.complete) == (sent.whole + error, None, True)
    assert resumed(stream)["token_ids"] == sent.tokens


def test_an_error_is_not_passed_with_what_follows_it():
    stream = ResumableStream("r")
    error = failed_event("server_error")
    assert stream.feed(token_event("a", 1) + error + DONE) == token_event("a", 1)
    assert (stream.failure(), stream.complete) == (error, False)


@pytest.mark.parametrize("text", TRAPS)
def test_a_text_is_no_list_of_tokens(text: str):
    stream = ResumableStream("r")
    event = token_event(text, 4)
    assert stream.feed(event) == event
    assert (stream.tokens, stream.complete, stream.failure()) == (1, False, None)
    assert resumed(stream)["token_ids"] == [4]


def test_other_lists_are_no_tokens():
    stream = ResumableStream("r")
    stream.feed(b'data: {"created":5,"prompt_token_ids":[1,2],"choices":[{"token_ids":[3]}],"stop_token_ids":[9]}\n\n')
    assert resumed(stream) == {"id": "r", "created": 5, "token_ids": [3]}


def test_several_tokens_in_several_events_of_one_read():
    stream = ResumableStream("r")
    stream.feed(token_event("a", 1, 2) + token_event("") + token_event("b", 3) + b'data: {"usage":{}}\n\n' + DONE)
    assert (stream.tokens, stream.complete) == (3, True)


def test_a_stream_without_any_event_starts_anew():
    stream = ResumableStream("r")
    assert stream.feed(b'data: {"created":1,') == b""
    assert stream.resumption() == b""
    event = token_event("a", 1, created=2)
    assert stream.feed(event) == event, "nothing is left of the first engine's half event"
    assert resumed(stream)["created"] == 2


def test_a_stream_that_has_begun_without_tokens_is_resumed_with_none():
    stream = ResumableStream("r")
    stream.feed(token_event("", created=3))
    assert resumed(stream) == {"id": "r", "created": 3, "token_ids": []}


def test_the_first_engines_time_stays():
    stream = ResumableStream("r")
    stream.feed(token_event("a", 1, created=3))
    stream.resumption()
    stream.feed(token_event("b", 2, created=9))
    assert resumed(stream) == {"id": "r", "created": 3, "token_ids": [1, 2]}


def test_an_id_is_quoted():
    stream = ResumableStream('a"b\\')
    stream.feed(token_event("a", 1))
    assert resumed(stream)["id"] == 'a"b\\'


def test_an_event_without_end_is_not_collected_for_ever():
    stream = ResumableStream("r")
    passed = stream.feed(token_event("a", 1))
    for _ in range(64):
        passed += stream.feed(b"x" * 65536)
        if stream.failure() is not None:
            break
    assert passed == token_event("a", 1)
    assert b"is larger than" in (stream.failure() or b"")
