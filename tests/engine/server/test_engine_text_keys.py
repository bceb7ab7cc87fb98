"""The names of prompts' beginnings: what the router computes too, so every byte of the definition counts."""

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server.text_keys import prefix_keys, prompt_text, text_keys

texts = st.integers(0, 1500).flatmap(lambda size: st.binary(min_size=size, max_size=size))


def test_keys_are_the_same_in_every_process():
    value = bytes(range(256)) * 2 + b"x" * 255
    assert [key.hex() for key in prefix_keys(value)] == ["2b2cedfed655ad3f", "2869a79b6809a96c"]


def test_a_key_is_of_its_chunk_and_the_key_before():
    chunks = [bytes([i]) * 256 for i in range(3)]
    keys = prefix_keys(b"".join(chunks))
    assert keys[0] == blake2b(chunks[0], digest_size=8).digest()
    assert keys[1] == blake2b(keys[0] + chunks[1], digest_size=8).digest()
    assert keys[2] == blake2b(keys[1] + chunks[2], digest_size=8).digest()


@given(texts, texts)
def test_a_text_that_goes_on_keeps_the_keys_of_its_whole_chunks(value, more):
    keys = prefix_keys(value)
    assert len(keys) == len(value) // 256
    assert prefix_keys(value + more)[: len(keys)] == keys


@given(texts.filter(lambda value: len(value) >= 256), st.data())
def test_another_byte_changes_all_keys_from_its_chunk_on(value, data):
    place = data.draw(st.integers(0, len(value) // 256 * 256 - 1))
    other = value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
    same = [a == b for a, b in zip(prefix_keys(value), prefix_keys(other), strict=True)]
    assert same == [chunk < place // 256 for chunk in range(len(value) // 256)]


def test_chunks_end_where_their_share_of_the_tokens_ends():
    assert [end for end, _ in text_keys(b"x" * 1000, 100)] == [26, 52, 77]
    assert [end for end, _ in text_keys(b"x" * 1024, 1)] == [1, 1, 1, 1]
    assert text_keys(b"x" * 255, 100) == ()
    assert text_keys(b"", 100) == ()


@given(texts, st.integers(1, 3000))
def test_chunks_end_in_order_within_the_prompt(value, num_tokens):
    named = text_keys(value, num_tokens)
    ends = [end for end, _ in named]
    assert [key for _, key in named] == prefix_keys(value)
    assert ends == sorted(ends)
    assert all(0 < end <= num_tokens for end in ends)
    assert not value or len(value) % 256 or ends[-1] == num_tokens


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            rb'{"messages" :  [ {"role":"user", "content":"\u00e9"} ] , "n":1}',
            rb'[ {"role":"user", "content":"\u00e9"} ]',
        ),
        (rb'{"prompt": "a\/b","max_tokens":1}', rb'"a\/b"'),
        (rb'{"prompt":[1, 2,3 ]}', rb"[1, 2,3 ]"),
        (rb'{"prompt":"later","messages":[]}', rb"[]"),
        (rb'{"nested":{"messages":[1]},"prompt":"p"}', rb'"p"'),
        (rb'{"model":"m"}', b""),
    ],
)
def test_the_text_is_the_value_as_it_stands_in_the_body(body, text):
    assert prompt_text(body) == text
