"""What travels on an agent's socket: a 4-byte big-endian length, then one JSON object.

A request is ``{"id", "method", "params"}``, its reply ``{"id", "result"}`` or ``{"id", "error": {"kind", "message"}}``;
an event, after ``subscribe``, is ``{"event", ...}``.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, Optional

VERSION = 2
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4

Message = Dict[str, Any]


class ProtocolError(Exception):
    """The peer sent something that is no message."""


def encode(message: Message) -> bytes:
    """The message with its length in front."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read_message(reader: asyncio.StreamReader) -> Optional[Message]:
    """The next message, or None when the peer has closed the connection."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return _decode(body)


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is a JSON object")
    return message
