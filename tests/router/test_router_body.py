"""What is added to a body, and that nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.body import BodyError, complete_body, estimate_tokens, parse_body

INFO = b'{"prefill_ip":"127.0.0.1"}'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
members = st.dictionaries(st.text(max_size=8) | st.sampled_from(["prompt", "messages", "disaggregate_info"]), values)


@given(members, st.booleans(), st.sampled_from(["", " ", "\r\n\t "]))
def test_everything_else_stays(body: dict[str, object], ascii_only: bool, space: str):
    raw = (space + json.dumps(body, ensure_ascii=ascii_only) + space).encode("utf-8", "surrogatepass")
    pairs = json.loads(complete_body(parse_body(raw), "id-1", INFO), object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), "a member is there twice"
    sent = json.loads(complete_body(parse_body(raw), "id-1", INFO))
    assert sent == body | {"request_id": "id-1", "disaggregate_info": {"prefill_ip": "127.0.0.1"}}


@pytest.mark.parametrize("raw", [b"{}", b" { } ", b'{"a": 1}', b'{"a": 1 }\n'])
def test_objects_of_any_form(raw: bytes):
    assert json.loads(complete_body(parse_body(raw), 'quote"')) == json.loads(raw) | {"request_id": 'quote"'}


@pytest.mark.parametrize(
    "raw", [b'{"request_id": "mine", "a": 1}', rb'{"request\u005fid": "mine", "a": 1}', b'{"a":1,"request_id":"mine"}']
)
def test_the_clients_own_id_is_read_and_replaced(raw: bytes):
    body = parse_body(raw)
    assert body.request_id == "mine"
    pairs = json.loads(complete_body(body, "new"), object_pairs_hook=list)
    assert sorted(pairs) == [("a", 1), ("request_id", "new")]


def test_a_null_id_is_none():
    body = parse_body(b'{"request_id": null, "a": 1}')
    assert body.request_id is None
    assert json.loads(complete_body(body, "new"), object_pairs_hook=list) == [("a", 1), ("request_id", "new")]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b'{"a":1}x',
        b'{"a":1,}',
        b'{"a":NaN}',
        b"\xff",
        b'{"prompt":"a","\xff":1,"request_id":"a"}',
        b'{"request_id": 5}',
        b'{"a":' + b"[" * 50_000,
    ],
)
def test_what_is_no_request(raw: bytes):
    with pytest.raises(BodyError):
        parse_body(raw)


def test_tokens_of_text_grow_with_it():
    short, long = (parse_body(json.dumps({"prompt": "word " * n}).encode()).tokens for n in (10, 1000))
    assert 8 <= short <= 20
    assert 1000 <= long <= 1400


def test_tokens_given_as_ids_are_counted():
    assert parse_body(b'{"prompt": [1, 2, 3, 40000]}').tokens == 4
    assert parse_body(b'{"prompt": [[1, 2], [3, 4, 5]]}').tokens == 5


def test_escaped_text_counts_like_the_same_text_in_utf8():
    text = {"messages": [{"role": "user", "content": "你好世界" * 100}]}
    escaped, plain = (json.dumps(text, ensure_ascii=ascii_only).encode() for ascii_only in (True, False))
    assert len(escaped) > 1.9 * len(plain)
    assert parse_body(escaped).tokens == parse_body(plain).tokens


def test_there_is_always_some_work():
    assert estimate_tokens(b"") == 1
    assert parse_body(b'{"prompt": ""}').tokens == 1
