"""Which transport two engines use: the first in prefill's list that decode has too and that works between them."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.errors import TransferError
from engine.transfer.base import Inlet, Target, Transport, Writer
from engine.transfer.waits import deadline
from engine.transfer.wire import Channel, ChannelError, Chosen

logger = logging.getLogger(__name__)


class Way(NamedTuple):
    """A transport that works, and the writer that has been made with it."""

    transport: str
    writer: Writer


async def choose(
    decode: str,
    transports: Sequence[Transport],
    offers: Mapping[str, bytes],
    target: Target,
    channel: Channel,
    timeout_s: float,
) -> Way:
    """Prefill's part: try one transport after the other, and tell decode. Raises TransferError with all the reasons."""
    passed_over: list[str] = []
    for transport in transports:
        if transport.name not in offers:
            passed_over.append(f"{transport.name}: decode does not have it")
            continue
        try:
            async with deadline(timeout_s, f"{transport.name} to be set up"):
                writer = await transport.connect(offers[transport.name], target)
        except TransferError as error:
            passed_over.append(f"{transport.name}: {error}")
            continue
        channel.send(Chosen(transport.name, passed_over))
        _say(f"decode {decode}", transport.name, passed_over)
        return Way(transport.name, writer)
    raise TransferError(f"no KV transport works: {'; '.join(passed_over)}")


async def chosen(prefill: str, channel: Channel, inlets: Mapping[str, Inlet], timeout_s: float) -> str:
    """Decode's part: which of the inlets prefill uses. Raises ChannelError."""
    try:
        async with asyncio.timeout(timeout_s):
            message = await channel.receive()
    except TimeoutError:
        raise ChannelError(f"it chose no KV transport within {timeout_s:g} s") from None
    if not isinstance(message, Chosen) or message.transport not in inlets:
        raise ChannelError(f"it sent {type(message).__name__.lower()} where its choice of a transport was due")
    _say(f"prefill {prefill}", message.transport, message.passed_over)
    return message.transport


def _say(peer: str, transport: str, passed_over: Sequence[str]) -> None:
    for reason in passed_over:
        logger.warning("KV transport passed over with %s: %s", peer, reason)
    logger.info("KV transport with %s: %s", peer, transport)
