"""vLLM with NixlConnector: the prefill first, then the decode with what the prefill's answer says of its KV blocks.

Protocol: vLLM's documentation of NixlConnector (docs/features/nixl_connector_usage.md), as of 0.32.
"""

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from pdctl.router.protocols.base import Bodies, FollowUp, PdProtocol
from pdctl.router.requests.body import Body, completed, members

if TYPE_CHECKING:
    from pdctl.router.engines.instance import Instance
    from pdctl.router.engines.pairs import Pair

_ONE, _FALSE = Raw(b"1"), Raw(b"false")
_WANTED = Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,'
    b'"remote_host":null,"remote_port":null}'
)


class _PrefillAnswer(msgspec.Struct):
    kv_transfer_params: Raw = Raw(b"null")


_decode_answer = msgspec.json.Decoder(_PrefillAnswer).decode


class VllmNixl(PdProtocol):
    """`kv_transfer_params` is opaque and copied whole: its fields grew between versions."""

    name = "vllm-nixl"
    splits_choices = False  # the prefill frees its blocks when the first of them has been fetched
    splits_prompt_output = False  # only the prefill has them, and asking a decode crashes some versions

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """The prefill's only."""
        return Bodies(one_token(body, _WANTED), None)

    def follow_up(self, body: Body, pair: "Pair", answer: bytes) -> FollowUp:
        """The client's body with the prefill's parameters. An answer without any: the decode computes the prompt."""
        params = _params(answer)
        if params is None:
            return FollowUp(completed(body, b""), "no_kv_transfer_params")
        return FollowUp(completed(body, b'"kv_transfer_params":%b' % params), None)

    def release(self, body: Body, pair: "Pair", answer: bytes) -> bytes | None:
        """A decode of one token fetches the KV, after which the prefill frees its blocks."""
        params = _params(answer)
        return None if params is None else one_token(body, params)

    def can_prefill(self, decode: "Instance") -> bool:
        """Any vLLM engine can: without parameters it is an ordinary one."""
        return True


def one_token(body: Body, params: Raw) -> bytes:
    """A prefill's body: no stream, one token, and one choice, since the KV of further ones would never be fetched."""
    changed = members(body)
    for name in ("stream_options", "min_tokens", "best_of"):
        changed.pop(name, None)
    for name in ("n", "max_completion_tokens"):
        if name in changed:
            changed[name] = _ONE
    changed["stream"] = _FALSE
    changed["max_tokens"] = _ONE
    changed["kv_transfer_params"] = params
    return msgspec.json.encode(changed)


def _params(answer: bytes) -> Raw | None:
    params = _decode_answer(answer).kv_transfer_params
    return None if bytes(params) == b"null" else params
