"""Text to tokens and back, in the words of the model."""

from collections.abc import Iterable, Sequence

import tokenizers

from engine.errors import RequestError
from engine.loading.chat_template import ChatTemplate, Message


class Tokenizer:
    """A model's tokenizer and chat template. May be used from several threads."""

    def __init__(
        self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, eos_token_ids: Iterable[int]
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template
        self.eos_token_ids = frozenset(eos_token_ids)
        self.vocab_size: int = backend.get_vocab_size()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokenize a text; with the special tokens that the model wants around one, unless they are in it already."""
        # As a batch of one: that lets go of the GIL meanwhile, encode() does not.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokenize a conversation that the model is to answer. Raises RequestError if its template refuses it."""
        return self.encode(self.apply_chat_template(messages), add_special_tokens=False)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **values: object
    ) -> str:
        """Write a conversation in the model's format; ``values`` are the template's to use (``tools``, ...)."""
        if self._template is None:
            raise RequestError("this model has no chat template: use /v1/completions")
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, **values)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, without special ones. Bytes that are no UTF-8 become U+FFFD."""
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text
