"""Texts and conversations to tokens, without holding up the event loop."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from engine.loading.tokenizer import Tokenizer

_TURN_CHARS = 64  # a turn's share in rendering a conversation, in characters that take as long
_INLINE_CHARS = 4096  # a text this long takes about a millisecond; a thread's round trip takes a tenth of that

_Input = TypeVar("_Input")


async def encode_text(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Tokenize a text, with the model's beginning-of-text token if it has one."""
    return await _encode(tokenizer.encode, text, len(text))


async def encode_chat(tokenizer: "Tokenizer", turns: list[dict[str, str]]) -> list[int]:
    """Tokenize a conversation in the words of the model's chat template. Raises RequestError if that refuses it."""
    return await _encode(tokenizer.encode_chat, turns, sum(len(turn["content"]) + _TURN_CHARS for turn in turns))


async def _encode(encode: Callable[[_Input], list[int]], value: _Input, size: int) -> list[int]:
    if size <= _INLINE_CHARS:
        return encode(value)
    return await asyncio.to_thread(encode, value)
