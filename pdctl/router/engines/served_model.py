"""Asks an engine that does not register which model it serves."""

from typing import Annotated, NamedTuple

import msgspec

from pdctl.router.engines.instance import Instance
from pdctl.router.upstream.fetch import fetch


class ServedModel(NamedTuple):
    """What an engine says of its model; no name if it does not say."""

    name: str = ""
    max_model_len: int | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: Annotated[int, msgspec.Meta(ge=1)] | None = None  # vLLM's and SGLang's


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask_served_model(instance: Instance) -> ServedModel:
    """The first of the engine's GET /v1/models: engines put aliases and adapters after it. FetchError: no answer."""
    answer = await fetch(instance.pool, b"GET", b"/v1/models", timeout=instance.pool.limits.probe_timeout)
    if answer.status != 200:
        return ServedModel()
    try:
        models = msgspec.json.decode(answer.body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ServedModel()
    return ServedModel(models[0].id, models[0].max_model_len) if models else ServedModel()
