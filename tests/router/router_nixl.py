"""A prefill and a decode that speak vLLM's NIXL protocol."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from router_mocks import Split, Turn, answer_at_once
from router_protocol_mocks import OnRequest, protocol_pair

# As vLLM writes it, spaces and all: it is copied byte for byte.
PARAMS = b'{"remote_block_ids": [[1, 2], [3]],"f":1.50, "remote_host":"10.0.0.1" ,"u":"\\u00e4"}'


async def prefilled(turn: Turn, params: bytes = PARAMS) -> None:
    await turn.answer(b'{"id": "cmpl-1", "choices": [{"text": " P"}], "kv_transfer_params": %b }' % params)


def nixl(
    on_prefill: OnRequest = prefilled, on_decode: OnRequest = answer_at_once, **settings: Any
) -> AbstractAsyncContextManager[Split]:
    return protocol_pair("vllm-nixl", on_prefill, on_decode, **settings)


def params_of(turn: Turn) -> bytes:
    """The value of a decode's `kv_transfer_params`, which is its body's last member."""
    _, found, params = turn.body.partition(b'"kv_transfer_params":')
    assert found
    return params.removesuffix(b"}")
