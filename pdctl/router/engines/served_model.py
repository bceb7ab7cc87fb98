"""Asks an engine that does not say it by itself which model it serves."""

from typing import Annotated

import msgspec

from pdctl.router.engines.instance import Instance, ServedModel
from pdctl.router.upstream.fetch import FetchError, fetch

_MODELS = "/v1/models"


class _Model(msgspec.Struct):
    id: str
    max_model_len: Annotated[int, msgspec.Meta(ge=1)] | None = None  # vLLM's and SGLang's


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask_served_model(instance: Instance) -> ServedModel | None:
    """The first of the engine's GET /v1/models: engines put aliases and adapters after it.

    None: it does not tell us (it has no such list, or wants a key). FetchError: it cannot tell now.
    """
    answer = await fetch(instance.pool, b"GET", _MODELS.encode(), timeout=instance.pool.limits.probe_timeout)
    if 400 <= answer.status < 500:
        return None
    if answer.status != 200:
        raise FetchError(f"{_MODELS} answers {answer.status}")
    try:
        models = msgspec.json.decode(answer.body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FetchError(f"{_MODELS} answers with no list of models: {error}") from None
    return ServedModel(models[0].id, models[0].max_model_len) if models else None
