"""A request's JSON body: what the router reads in it, and what it adds. The rest stays as the client wrote it."""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

# Prompt bytes for each token. docs/router.md says how good this is.
BYTES_PER_TOKEN = 4


class Body(msgspec.Struct, frozen=True, gc=False):
    """A completion request, as the router sees it."""

    opened: bytes  # the JSON object without its closing brace, ready for another member: ends in "{" or ","
    request_id: str | None  # the client's own
    tokens: int  # the prompt's, estimated
    prompt: bytes  # raw JSON of a chat's messages, or of the prompt or prompts
    model: str
    stream: bool
    n: int
    best_of: int
    user: str
    prompt_output: bool  # asks for what only the engine that computes the prompt has: its logprobs

    @property
    def sequences(self) -> int:
        """How many are answered: prompts times choices."""
        prompts = 1
        if self.prompt.startswith(b"[") and self.prompt[1:].lstrip()[:1] in (b'"', b"["):
            prompts = len(msgspec.json.decode(self.prompt, type=list[Raw]))
        return prompts * self.n

    @property
    def is_single(self) -> bool:
        """Whether one sequence is generated, and no others that the best one is chosen of."""
        return self.n <= 1 and self.best_of <= 1 and self.sequences <= 1


class BodyError(ValueError):
    """The body is not what a completion request can be."""


class _Envelope(msgspec.Struct):
    prompt: Raw = Raw()
    messages: Raw = Raw()
    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    best_of: int | None = None
    user: str | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    request_id: str | UnsetType | None = UNSET
    # What routers tell engines. A client that sends it would steer transfers between engines: it is taken out.
    disaggregate_info: Raw | UnsetType = UNSET
    resume: Raw | UnsetType = UNSET
    prefill_on_decode: Raw | UnsetType = UNSET
    kv_transfer_params: Raw | UnsetType = UNSET
    bootstrap_host: Raw | UnsetType = UNSET
    bootstrap_port: Raw | UnsetType = UNSET
    bootstrap_room: Raw | UnsetType = UNSET


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_ADDED = (
    "request_id",
    "disaggregate_info",
    "resume",
    "prefill_on_decode",
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
)


def parse_body(raw: bytes, *, chat: bool) -> Body:
    """Read a completion request's body, of which engines read `messages` for a chat and else `prompt`.

    BodyError if it is no JSON object, or has a member of the wrong type.
    """
    try:
        if not raw.isascii():
            raw.decode()  # the reader checks only what it reads, but other readers of the body check all
        seen = _decode_envelope(raw)
        if _has_added(seen):
            raw = _without_added(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not a valid JSON request: {error}") from None
    opened = raw.rstrip(b" \t\r\n")[:-1].rstrip(b" \t\r\n")
    if not opened.endswith(b"{"):
        opened += b","
    prompt = bytes(seen.messages if chat else seen.prompt)
    return Body(
        opened,
        seen.request_id or None,
        estimate_tokens(prompt),
        prompt,
        seen.model or "",
        bool(seen.stream),
        seen.n or 1,
        seen.best_of or 1,
        seen.user or "",
        bool(seen.echo) or seen.prompt_logprobs is not None,
    )


def completed(body: Body, added: bytes) -> bytes:
    """The body with further members: `"name":value`, separated by commas."""
    return b"%b%b}" % (body.opened, added) if added else body.opened.removesuffix(b",") + b"}"


def members(body: Body) -> dict[str, Raw]:
    """The body's members as they stand in it, to be changed and encoded again."""
    members: dict[str, Raw] = _decode_members(completed(body, b""))
    return members


def estimate_tokens(prompt: bytes) -> int:
    """Tokens in a prompt given as JSON: messages, text, texts, or token ids."""
    if prompt.lstrip(b"[ ")[:1].isdigit():
        return prompt.count(b",") + 1
    escapes = prompt.count(b"\\u")  # \uXXXX: six bytes for a character that takes about three in UTF-8
    return max(1, (len(prompt) - 3 * escapes) // BYTES_PER_TOKEN)


def _has_added(seen: _Envelope) -> bool:
    return (
        seen.request_id is not UNSET
        or seen.disaggregate_info is not UNSET
        or seen.resume is not UNSET
        or seen.prefill_on_decode is not UNSET
        or seen.kv_transfer_params is not UNSET
        or seen.bootstrap_host is not UNSET
        or seen.bootstrap_port is not UNSET
        or seen.bootstrap_room is not UNSET
    )


def _without_added(raw: bytes) -> bytes:
    """The same object without the members that the router adds: no reader may see two of a name."""
    members: dict[str, Any] = _decode_members(raw)
    for name in _ADDED:
        members.pop(name, None)
    return msgspec.json.encode(members)
