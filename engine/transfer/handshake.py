"""The first words on a connection: who the peer is, and whether its KV fits ours."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from engine.errors import TransferError
from engine.transfer.base import Identity
from engine.transfer.blocks import check_whole
from engine.transfer.wire import (
    MAX_HANDSHAKE_FRAME,
    VERSION,
    Challenge,
    Channel,
    ChannelError,
    Hello,
    Message,
    Rejected,
    Welcome,
)

_M = TypeVar("_M", Challenge, Hello)


def compat_hash(
    model_config: Mapping[str, Any], *, dtype: str, block_size: int, layout: Mapping[str, Any], version: str
) -> str:
    """Hash all that two engines must have in common for the KV of one to make sense to the other."""
    parts = {"model": model_config, "dtype": dtype, "block_size": block_size, "layout": layout, "version": version}
    canonical = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


async def introduce(channel: Channel, identity: Identity, transports: Sequence[str]) -> Welcome:
    """Prefill's part. Raises TransferError when decode does not want us, ChannelError when the connection fails."""
    challenge = await _expect(channel, Challenge)
    proof = _sign(identity.token, challenge.salt, identity.engine_id)
    channel.send(
        Hello(
            VERSION, identity.engine_id, proof, list(transports), identity.compat, dict(identity.layout), identity.shard
        ),
    )
    answer = await channel.receive()
    if isinstance(answer, Rejected):
        raise TransferError(f"rejected: {answer.reason}")
    if not isinstance(answer, Welcome):
        raise ChannelError(f"it sent {_name(answer)} where welcome or rejected was due")
    return answer


async def admit(channel: Channel, identity: Identity, transports: Sequence[str]) -> Hello:
    """Decode's part, up to the welcome. A peer that does not fit is told why, and ChannelError raised."""
    salt = secrets.token_bytes(32)
    channel.send(Challenge(salt))
    hello = await _expect(channel, Hello, max_frame=MAX_HANDSHAKE_FRAME)
    misfit = (
        _wrong_token(hello, identity, salt)
        or _misfit(hello, identity)
        or _lacking_heads(hello, identity)
        or _nothing_in_common(hello, transports)
    )
    if misfit:
        channel.send(Rejected(misfit))
        raise ChannelError(f"rejected {hello.engine_id}: {misfit}")
    return hello


async def _expect(channel: Channel, kind: type[_M], *, max_frame: int = MAX_HANDSHAKE_FRAME) -> _M:
    message = await channel.receive(max_frame=max_frame)
    if not isinstance(message, kind):
        raise ChannelError(f"it sent {_name(message)} where {kind.__name__.lower()} was due")
    return message


def _wrong_token(hello: Hello, identity: Identity, salt: bytes) -> str | None:
    if identity.token is None:
        return None
    if hmac.compare_digest(hello.proof, _sign(identity.token, salt, hello.engine_id)):
        return None
    return "wrong token: the engines belong to different deployments"


def _sign(token: str | None, salt: bytes, engine_id: str) -> bytes:
    return hmac.digest((token or "").encode(), salt + engine_id.encode(), "sha256")


def _misfit(hello: Hello, identity: Identity) -> str | None:
    """Name the first thing that differs, with both values."""
    facts: list[tuple[str, object, object]] = [
        ("KV wire version", hello.version, VERSION),
        ("KV layout", hello.layout, _as_received(identity.layout)),
        ("compat hash (model, dtype, block size, layout, engine version)", hello.compat, identity.compat),
    ]
    for what, theirs, ours in facts:
        if theirs != ours:
            return f"{what} differs: prefill has {theirs}, decode has {ours}"
    return None


def _lacking_heads(hello: Hello, identity: Identity) -> str | None:
    try:
        check_whole(hello.shard, identity.shard)
    except TransferError as error:
        return str(error)
    return None


def _nothing_in_common(hello: Hello, transports: Sequence[str]) -> str | None:
    if set(hello.transports) & set(transports):
        return None
    theirs, ours = ", ".join(hello.transports), ", ".join(transports)
    return f"no KV transport in common: prefill has {theirs or 'none'}, decode has {ours or 'none'}"


def _as_received(layout: Mapping[str, Any]) -> object:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(layout))


def _name(message: Message) -> str:
    return type(message).__name__.lower()
