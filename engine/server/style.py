"""How the two endpoints word their answers."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.server.answer import Piece
from engine.server.responses import AnswerMessage, ChatChoice, ChatPiece, Choice, MessageDelta, TextChoice


@dataclass(frozen=True, slots=True)
class Style:
    """One endpoint's objects."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    opening: Callable[[int], list[Choice]]  # what a stream says of a choice before its first piece
    piece: Callable[[Piece], Choice]
    whole: Callable[[Piece], Choice]


def _chat_opening(index: int) -> list[Choice]:
    return [ChatPiece(index, MessageDelta(role="assistant", content=""))]


def _chat_piece(piece: Piece) -> Choice:
    return ChatPiece(
        piece.choice, MessageDelta(content=piece.text or None), piece.finish_reason, token_ids=piece.token_ids
    )


def _chat_whole(piece: Piece) -> Choice:
    return ChatChoice(piece.choice, AnswerMessage(piece.text), piece.finish_reason, token_ids=piece.token_ids)


def _text_opening(index: int) -> list[Choice]:
    return []


def _text(piece: Piece) -> Choice:
    return TextChoice(piece.choice, piece.text, piece.finish_reason, token_ids=piece.token_ids)


CHAT = Style("chatcmpl-", "chat.completion", "chat.completion.chunk", _chat_opening, _chat_piece, _chat_whole)
TEXT = Style("cmpl-", "text_completion", "text_completion", _text_opening, _text, _text)
