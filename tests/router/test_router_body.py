"""What is added to a body, and that nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.requests.body import Body, BodyError, completed, estimate_tokens, members, parse_body

ADDED = b'"request_id":"id-1","disaggregate_info":{"prefill_ip":"127.0.0.1"}'
TYPED = {"model", "stream", "n", "best_of", "user", "echo", "prompt_logprobs"}  # read, so not anything will do
ROUTERS = ["request_id", "disaggregate_info", "resume", "prefill_on_decode", "kv_transfer_params",
           "bootstrap_host", "bootstrap_port", "bootstrap_room"]  # fmt: skip


def parsed(raw: bytes, *, chat: bool = False) -> Body:
    return parse_body(raw, chat=chat)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
names = st.text(max_size=8).filter(lambda name: name not in TYPED) | st.sampled_from(
    ["prompt", "messages", *ROUTERS[1:]]
)
objects = st.dictionaries(names, values)


@given(objects, st.booleans(), st.sampled_from(["", " ", "\r\n\t "]))
def test_everything_else_stays(body: dict[str, object], ascii_only: bool, space: str):
    raw = (space + json.dumps(body, ensure_ascii=ascii_only) + space).encode("utf-8", "surrogatepass")
    sent = completed(parsed(raw), ADDED)
    names = [name for name, _ in json.loads(sent, object_pairs_hook=list)]
    assert len(names) == len(set(names)), "a member is there twice"
    own = {name: value for name, value in body.items() if name not in ROUTERS}
    assert json.loads(sent) == own | {"request_id": "id-1", "disaggregate_info": {"prefill_ip": "127.0.0.1"}}
    assert json.loads(completed(parsed(raw), b"")) == own
    assert {name: json.loads(bytes(value)) for name, value in members(parsed(raw)).items()} == own


@pytest.mark.parametrize("raw", [b"{}", b" { } ", b'{"a": 1}', b'{"a": 1 }\n'])
def test_objects_of_any_form(raw: bytes):
    assert json.loads(completed(parsed(raw), b'"b":2,"c":3')) == json.loads(raw) | {"b": 2, "c": 3}
    assert json.loads(completed(parsed(raw), b"")) == json.loads(raw)


@pytest.mark.parametrize(
    "raw", [b'{"request_id": "mine", "a": 1}', rb'{"request\u005fid": "mine", "a": 1}', b'{"a":1,"request_id":"mine"}']
)
def test_the_clients_own_id_is_read_and_replaced(raw: bytes):
    body = parsed(raw)
    assert body.request_id == "mine"
    pairs = json.loads(completed(body, b'"request_id":"new"'), object_pairs_hook=list)
    assert sorted(pairs) == [("a", 1), ("request_id", "new")]


def test_a_null_id_is_none():
    body = parsed(b'{"request_id": null, "a": 1}')
    assert body.request_id is None
    assert json.loads(completed(body, b'"request_id":"new"'), object_pairs_hook=list) == [
        ("a", 1),
        ("request_id", "new"),
    ]


@pytest.mark.parametrize("name", ROUTERS[1:])
@pytest.mark.parametrize("value", ["1", "null", '{"a": [1]}'])
def test_a_client_cannot_say_what_routers_say(name: str, value: str):
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    for written in (name, escaped):
        raw = f'{{"{written}": {value}, "prompt": "a"}}'.encode()
        assert json.loads(completed(parsed(raw), b"")) == {"prompt": "a"}


def test_what_is_read_of_a_request():
    body = parsed(
        b'{"model":"m","stream":true,"n":3,"user":"u","messages":[{"role":"user","content":"x"}],"a":1}', chat=True
    )
    assert (body.model, body.stream, body.n, body.user, body.prompt_output) == ("m", True, 3, "u", False)
    assert body.prompt == b'[{"role":"user","content":"x"}]'
    plain = parsed(b'{"prompt":"x","model":null,"stream":null,"n":null,"user":null,"echo":null}')
    assert (plain.model, plain.stream, plain.n, plain.user, plain.prompt_output) == ("", False, 1, "", False)
    assert plain.prompt == b'"x"'
    assert parsed(b'{"prompt":"x","echo":true}').prompt_output
    assert parsed(b'{"prompt":"x","prompt_logprobs":0}').prompt_output


def test_of_messages_and_prompt_that_counts_which_the_engine_reads():
    raw = b'{"messages": [{"role":"user"}], "prompt": ["a", "b"]}'
    chat, text = parsed(raw, chat=True), parsed(raw)
    assert (chat.prompt, chat.sequences, chat.is_single) == (b'[{"role":"user"}]', 1, True)
    assert (text.prompt, text.sequences, text.is_single) == (b'["a", "b"]', 2, False)


@pytest.mark.parametrize(
    ("raw", "sequences", "single"),
    [
        (b'{"prompt": "a"}', 1, True),
        (b'{"prompt": ["a"], "n": 1, "best_of": 1}', 1, True),
        (b'{"prompt": [1, 2]}', 1, True),
        (b'{"prompt": "a", "n": 2}', 2, False),
        (b'{"prompt": "a", "best_of": 2}', 1, False),
        (b'{"prompt": [[1], [2]], "n": 2, "best_of": 3}', 4, False),
        (b'{"prompt": [], "n": 2}', 2, False),
    ],
)
def test_how_many_sequences_are_asked_for(raw: bytes, sequences: int, single: bool):
    body = parsed(raw)
    assert (body.sequences, body.is_single) == (sequences, single)


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
        b'{"model": 5}',
        b'{"stream": "yes"}',
        b'{"n": "2"}',
        b'{"best_of": "2"}',
        b'{"user": []}',
        b'{"request_id":"a","x":NaN}',
        b'{"a":' + b"[" * 50_000,
    ],
)
def test_what_is_no_request(raw: bytes):
    with pytest.raises(BodyError):
        parsed(raw)


def test_tokens_of_text_grow_with_it():
    short, long = (parsed(json.dumps({"prompt": "word " * n}).encode()).tokens for n in (10, 1000))
    assert 8 <= short <= 20
    assert 1000 <= long <= 1400


def test_tokens_given_as_ids_are_counted():
    assert parsed(b'{"prompt": [1, 2, 3, 40000]}').tokens == 4
    assert parsed(b'{"prompt": [[1, 2], [3, 4, 5]]}').tokens == 5


def test_escaped_text_counts_like_the_same_text_in_utf8():
    text = {"messages": [{"role": "user", "content": "你好世界" * 100}]}
    escaped, plain = (json.dumps(text, ensure_ascii=ascii_only).encode() for ascii_only in (True, False))
    assert len(escaped) > 1.9 * len(plain)
    assert parsed(escaped, chat=True).tokens == parsed(plain, chat=True).tokens


def test_there_is_always_some_work():
    assert estimate_tokens(b"") == 1
    assert parsed(b'{"prompt": ""}').tokens == 1
