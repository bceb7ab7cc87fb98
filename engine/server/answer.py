"""One request's answer while it is being generated: tokens in, pieces of text out."""

import time
from collections.abc import AsyncGenerator
from typing import NamedTuple

import msgspec

from engine.scheduler.request import FinishReason, Token
from engine.server.detokenizer import ChoiceText
from engine.server.job import Job
from engine.server.metrics import ServerMetrics
from engine.server.responses import TokenIds, Usage, usage
from engine.server.streams import TokenStream


class Piece(NamedTuple):
    """The next text of one choice; ``finish_reason`` with its last."""

    choice: int
    text: str
    finish_reason: FinishReason | None
    token_ids: TokenIds  # since the piece before


class Answer:
    """The choices of one request."""

    def __init__(self, job: Job, stream: TokenStream, choices: list[ChoiceText], metrics: ServerMetrics) -> None:
        self.job = job
        self.started = False  # the core has taken the request
        self._cached_tokens = 0  # of the prompt and what is resumed
        self._stream = stream
        self._metrics = metrics
        self._choices = choices
        self._token_ids: list[list[int]] = [[] for _ in self._choices]  # of each choice, not yet in a piece
        self._unended = len(self._choices)  # choices that the core has not ended
        self._last_tokens = 0.0  # when tokens came last

    @property
    def usage(self) -> Usage:
        """The tokens so far, resumed ones among them."""
        generated = sum(choice.num_tokens for choice in self._choices)
        prompt = self.job.prompt_tokens
        return usage(prompt, generated, min(self._cached_tokens, prompt))

    @property
    def finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish_reason for choice in self._choices)

    @property
    def generating(self) -> bool:
        """Whether the core still works for it; a stop string can end a choice that the core would continue."""
        return self.started and self._unended > 0

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """Yield what each wake-up brings, at most one piece a choice, until all have ended. Raises RequestError."""
        if self.finished:  # what is resumed had ended: the client lacks no text, but perhaps the reason
            yield [self._piece(index, "") for index in range(len(self._choices))]
        while not self.finished:
            pieces = self._take_in(await self._stream.take())
            if pieces:
                yield pieces
        self._metrics.finished(self._overall_reason(), self.job.arrived)

    async def whole(self) -> list[Piece]:
        """Wait for the end; return each choice in one piece. Raises RequestError."""
        parts: list[list[Piece]] = [[] for _ in self._choices]
        async for pieces in self.pieces():
            for piece in pieces:
                parts[piece.choice].append(piece)
        return [self._join(pieces) for pieces in parts]

    def _join(self, pieces: list[Piece]) -> Piece:
        token_ids: TokenIds = msgspec.UNSET
        if self.job.return_token_ids:
            token_ids = [token for piece in pieces for token in piece.token_ids or ()]
        return Piece(pieces[-1].choice, "".join([p.text for p in pieces]), pieces[-1].finish_reason, token_ids)

    def _take_in(self, tokens: list[Token]) -> list[Piece]:
        texts: dict[int, str] = {}
        taken = 0
        for token in tokens:
            self._unended -= token.finish_reason is not None
            self._cached_tokens = max(self._cached_tokens, token.cached_tokens)
            choice = self._choices[token.index]
            if choice.finish_reason is None:
                taken += 1
                self._token_ids[token.index].append(token.token_id)
                texts[token.index] = texts.get(token.index, "") + choice.push(token)
        if taken:  # else: all are of choices that a stop string has ended, and the core goes on with
            self._measure(taken, len(texts))
        return [self._piece(i, text) for i, text in texts.items() if text or self._choices[i].finish_reason]

    def _piece(self, index: int, text: str) -> Piece:
        token_ids, self._token_ids[index] = self._token_ids[index], []
        wanted = self.job.return_token_ids
        return Piece(index, text, self._choices[index].finish_reason, token_ids if wanted else msgspec.UNSET)

    def _measure(self, num_tokens: int, num_choices: int) -> None:
        now = time.monotonic()
        if self._last_tokens:
            self._metrics.next_tokens((now - self._last_tokens) * num_choices / num_tokens, num_tokens)
        else:
            self._metrics.first_token(now - self.job.arrived)
        self._last_tokens = now

    def _overall_reason(self) -> str:
        reasons = {choice.finish_reason for choice in self._choices}
        return FinishReason.LENGTH if FinishReason.LENGTH in reasons else FinishReason.STOP
