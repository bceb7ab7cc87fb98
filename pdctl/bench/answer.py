"""A streamed answer read as token times: server-sent events of the OpenAI API."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec


@dataclass(slots=True)
class Answer:
    """What came back for one request. Times are those of the clock whose readings `AnswerReader.feed` is given."""

    first: float | None = None  # when the first output token came
    last: float | None = None  # when the last part of the output came
    gaps: list[float] = field(default_factory=list)  # between output tokens, or between chunks (see usage_per_chunk)
    chunks: int = 0  # that held output
    input_tokens: int | None = None  # by the server's usage
    output_tokens: int | None = None  # by the server's usage
    usage_per_chunk: bool = False  # the server counts tokens in each chunk, so gaps are between tokens
    finished: bool = False  # the server said why it ended, or that the stream is done
    error_kind: str | None = None  # None: completed
    error: str = ""
    texts: list[str] = field(default_factory=list)  # output, if it was to be kept

    def fail(self, kind: str, message: str) -> None:
        """Mark the request as failed, unless an earlier reason is known."""
        if self.error_kind is None:
            self.error_kind, self.error = kind, message


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Event).decode


class AnswerReader:
    """Collects an `Answer` from the bytes of its stream, however they are cut."""

    def __init__(self, *, keep_text: bool = False, on_tokens: Callable[[int], None] = lambda count: None) -> None:
        self.answer = Answer()
        self._keep_text = keep_text
        self._on_tokens = on_tokens
        self._partial = b""
        self._previous = 0.0  # when the latest output token came

    def feed(self, data: bytes, now: float) -> None:
        """Take what was read at the time ``now``."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)

    def _take(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.answer.finished = True
            return
        try:
            event = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.answer.fail("malformed", f"{error}: {payload[:200].decode(errors='replace')}")
            return
        if event.error is not None:
            self.answer.fail("error event", msgspec.json.encode(event.error)[:500].decode(errors="replace"))
        elif event.choices:
            self._take_choice(event.choices[0], event.usage, now)
        self._take_usage(event.usage)

    def _take_choice(self, choice: _Choice, usage: _Usage | None, now: float) -> None:
        answer = self.answer
        text, is_output = _output(choice)
        if choice.finish_reason is not None:
            answer.finished = True
        if is_output or (answer.first is None and answer.finished):
            self._take_output(usage, now)
        if self._keep_text and text:
            answer.texts.append(text)
        if answer.first is not None:
            answer.last = now

    def _take_output(self, usage: _Usage | None, now: float) -> None:
        answer = self.answer
        if answer.first is None:
            # A server that counts at the end only may do so in the last chunk: what the first one has decides.
            answer.usage_per_chunk = usage is not None
        tokens = usage.completion_tokens - (answer.output_tokens or 0) if usage and answer.usage_per_chunk else 1
        answer.chunks += 1
        if tokens <= 0:
            return
        if answer.first is None:
            answer.first = now
        else:
            answer.gaps += [(now - self._previous) / tokens] * tokens
        self._previous = now
        self._on_tokens(tokens)

    def _take_usage(self, usage: _Usage | None) -> None:
        if usage is not None:
            self.answer.input_tokens = usage.prompt_tokens
            self.answer.output_tokens = usage.completion_tokens


def _output(choice: _Choice) -> tuple[str, bool]:
    """Return the text of a chunk, and whether the chunk stands for output tokens.

    A chunk without text is one of tokens without text (half a character, a special token), unless it only opens the
    answer with the role or ends it with the reason.
    """
    delta = choice.delta
    if delta is None:
        text = choice.text or ""
        return text, bool(text) or choice.finish_reason is None
    text = delta.content or delta.reasoning_content or ""
    return text, bool(text or delta.tool_calls) or (delta.role is None and choice.finish_reason is None)
