"""The tokenizer in a GGUF file's metadata: a byte-level BPE, as Llama 3, Qwen and SmolLM have it."""

from enum import IntEnum

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

from engine.errors import ModelError
from engine.loading.chat_template import ChatTemplate
from engine.loading.gguf_header import GGUFHeader
from engine.loading.tokenizer import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_WORDS_AND_SPACES}"


class _TokenType(IntEnum):
    CONTROL = 3
    USER_DEFINED = 4


def load_tokenizer(header: GGUFHeader, eos_token_ids: frozenset[int]) -> Tokenizer:
    """Build the tokenizer. Raises ModelError if it is of a kind that this engine does not know."""
    kind = header.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise ModelError(
            f"{header.path.name} has a tokenizer of kind {kind!r}; this engine knows gpt2 (byte-level BPE)"
        )
    tokens = header.get("tokenizer.ggml.tokens", list)
    source = header.get("tokenizer.chat_template", str, "")
    try:
        backend = _backend(header, tokens)
        template = ChatTemplate(source, _special_tokens(header, tokens)) if source else None
    except IndexError as error:
        raise ModelError(f"{header.path.name} is damaged: a special token is not among its tokens") from error
    return Tokenizer(backend, template, eos_token_ids)


def _backend(header: GGUFHeader, tokens: list[str]) -> tokenizers.Tokenizer:
    pre = header.get("tokenizer.ggml.pre", str)
    merges = [tuple(merge.split(" ")) for merge in header.get("tokenizer.ggml.merges", list)]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    try:
        bpe = models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{header.path.name} is damaged: its tokenizer's merges: {error}") from error
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = _pre_tokenizer(header, pre)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    _add_special_tokens(backend, tokens, header.get("tokenizer.ggml.token_type", list))
    if header.get("tokenizer.ggml.add_bos_token", bool, pre == "llama-bpe"):
        _begin_with(backend, tokens, header.get("tokenizer.ggml.bos_token_id", int))
    return backend


def _pre_tokenizer(header: GGUFHeader, pre: str) -> PreTokenizer:
    plain = ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
    known = {
        "gpt-2": plain,
        "smollm": InTurn([Digits(individual_digits=True), plain]),
        "llama-bpe": InTurn([Split(Regex(_LLAMA3), "isolated"), bytes_only]),
        "qwen2": InTurn([Split(Regex(_QWEN2), "isolated"), bytes_only]),
    }
    if pre not in known:
        raise ModelError(f"{header.path.name} splits words by {pre!r}; this engine knows {', '.join(known)}")
    return known[pre]


def _add_special_tokens(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    typed = list(zip(tokens, types, strict=False))
    control = [AddedToken(token, normalized=False) for token, kind in typed if kind == _TokenType.CONTROL]
    backend.add_special_tokens(control)
    backend.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in typed if kind == _TokenType.USER_DEFINED]
    )


def _begin_with(backend: tokenizers.Tokenizer, tokens: list[str], bos: int) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)]
    )


def _special_tokens(header: GGUFHeader, tokens: list[str]) -> dict[str, str]:
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {f"{name}_token": f"tokenizer.ggml.{kind}_token_id" for name, kind in kinds.items()}
    return {name: tokens[header.get(key, int)] for name, key in keys.items() if key in header.metadata}
