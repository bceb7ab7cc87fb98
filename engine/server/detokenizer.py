"""Tokens to text, one at a time: never half a character, never a part of a stop string."""

from collections.abc import Callable

from engine.scheduler.request import FinishReason, Token

Decode = Callable[[list[int]], str]  # token ids -> text without special tokens

_INCOMPLETE = "\ufffd"  # what a decoder puts for the bytes of a character that is not whole yet
_MAX_PENDING = 8  # tokens to wait for a character's end: UTF-8 needs 4; more means bytes that are no character
_UNFINISHED = 3  # tokens at most that a character can have before its last


class Detokenizer:
    """Text of a growing run of tokens: the pieces joined are the text of all of them.

    A token's text can depend on the one before it (spaces), so each new piece is the difference between the text of
    a short window with and without the new tokens.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._known_tokens = 0  # leading tokens of the window whose text is out
        self._known_text = ""

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain."""
        self._window.append(token_id)
        if not self._decode(self._window).endswith(_INCOMPLETE):
            return self._advance(len(self._window))
        if len(self._window) - self._known_tokens < _MAX_PENDING:
            return ""
        return self._advance(len(self._window) - _UNFINISHED)

    def flush(self) -> str:
        """Return what is left at the end, whole character or not."""
        if len(self._window) == self._known_tokens:
            return ""
        return self._advance(len(self._window))

    def _advance(self, tokens: int) -> str:
        """Let out the text of the window's first tokens."""
        piece = self._decode(self._window[:tokens])[len(self._known_text) :]
        self._window = self._window[self._known_tokens :]
        self._known_tokens = tokens - self._known_tokens
        self._known_text = self._decode(self._window[: self._known_tokens])
        return piece


class StopMatcher:
    """Cuts a text at the stop string that ends first. However the text is split into pieces, the result is the same."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""  # the end of the text so far, which may be the start of a stop string

    def push(self, piece: str) -> tuple[str, bool]:
        """Add a piece; return the text that can go out, and whether a stop string was found right behind it."""
        text = self._held + piece
        matches = [(end, -len(stop)) for stop in self._stops if (end := _end_of(stop, text)) >= 0]
        if matches:
            end, negative_length = min(matches)
            self._held = ""
            return text[: end + negative_length], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _end_of(stop: str, text: str) -> int:
    start = text.find(stop)
    return start + len(stop) if start >= 0 else -1


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


class ChoiceText:
    """The text of one choice of an answer."""

    def __init__(self, decode: Decode, stops: list[str]) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = StopMatcher(stops) if stops else None
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, token: Token) -> str:
        """Add a token; return the text that can go out. The token that ends a sequence has none."""
        self.num_tokens += 1
        self.finish_reason = token.finish_reason
        piece = "" if token.finish_reason == FinishReason.STOP else self._detokenizer.push(token.token_id)
        if token.finish_reason is not None:
            piece += self._detokenizer.flush()
        return self._cut(piece)

    def _cut(self, piece: str) -> str:
        if self._stop is None:
            return piece
        text, stopped = self._stop.push(piece)
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif self.finish_reason is not None:
            text += self._stop.flush()
        return text
