"""A request's JSON body: what the router reads in it, and what it adds. The rest stays as the client wrote it."""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

# Prompt bytes for each token. docs/router.md says how good this is.
BYTES_PER_TOKEN = 4


class Body(NamedTuple):
    """A JSON object without its closing brace."""

    opened: bytes  # ready for another member: ends in "{" or ","
    request_id: str | None  # the client's own
    tokens: int  # the prompt's, estimated


class BodyError(ValueError):
    """The body is not what a completion request can be."""


class _Envelope(msgspec.Struct):
    request_id: str | UnsetType | None = UNSET
    disaggregate_info: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ADDED = ("request_id", "disaggregate_info")


def parse_body(raw: bytes) -> Body:
    """Read a completion request's body. BodyError if it is no JSON object or has a request_id that is no string."""
    try:
        envelope = _decode_envelope(raw)
        if envelope.request_id is not UNSET or envelope.disaggregate_info is not UNSET:
            raw = _without_added(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not a valid JSON request: {error}") from None
    opened = raw.rstrip(b" \t\r\n")[:-1].rstrip(b" \t\r\n")
    if not opened.endswith(b"{"):
        opened += b","
    return Body(
        opened, envelope.request_id or None, estimate_tokens(bytes(envelope.messages) or bytes(envelope.prompt))
    )


def complete_body(body: Body, request_id: str, disaggregate_info: bytes = b"") -> bytes:
    """The body for the engines."""
    added = b'"request_id":%b' % msgspec.json.encode(request_id)
    if disaggregate_info:
        added += b',"disaggregate_info":' + disaggregate_info
    return b"%b%b}" % (body.opened, added)


def estimate_tokens(prompt: bytes) -> int:
    """Tokens in a prompt given as JSON: messages, text, texts, or token ids."""
    if prompt.lstrip(b"[ ")[:1].isdigit():
        return prompt.count(b",") + 1
    escapes = prompt.count(b"\\u")  # \uXXXX: six bytes for a character that takes about three in UTF-8
    return max(1, (len(prompt) - 3 * escapes) // BYTES_PER_TOKEN)


def _without_added(raw: bytes) -> bytes:
    """The same object without the members that the router adds: no reader may see two of a name."""
    members: dict[str, Any] = _decode_object(raw)
    for name in _ADDED:
        members.pop(name, None)
    return msgspec.json.encode(members)
