"""Names for the beginnings of prompts that need no tokenizer: the router computes the same from a request's body."""

from hashlib import blake2b

import msgspec

CHUNK_BYTES = 256
KEY_BYTES = 8


class _Prompt(msgspec.Struct, frozen=True):
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


def prompt_text(body: bytes) -> bytes:
    """Return the JSON of `messages`, else of `prompt`, exactly as it stands in a body that has been parsed before."""
    fields = msgspec.json.decode(body, type=_Prompt)
    return bytes(fields.messages) or bytes(fields.prompt)


def prefix_keys(value: bytes) -> list[bytes]:
    """Return a key for each whole chunk of the text; it names the text from the beginning to the chunk's end."""
    keys: list[bytes] = []
    key = b""
    for end in range(CHUNK_BYTES, len(value) + 1, CHUNK_BYTES):
        key = blake2b(key + value[end - CHUNK_BYTES : end], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


def text_keys(value: bytes, num_tokens: int) -> tuple[tuple[int, bytes], ...]:
    """Return the keys of a prompt's text, each with the number of tokens that its text is taken to fill."""
    ends = range(CHUNK_BYTES, len(value) + 1, CHUNK_BYTES)
    return tuple((-(-end * num_tokens // len(value)), key) for end, key in zip(ends, prefix_keys(value), strict=True))
