"""The tokenizer of a Hugging Face folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from engine.errors import ModelError
from engine.loading.chat_template import ChatTemplate
from engine.loading.json_files import read_json
from engine.loading.tokenizer import Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder: Path, eos_token_ids: Iterable[int]) -> Tokenizer:
    """Build the tokenizer; its own end-of-text token joins the model's. Raises ModelError."""
    backend = _backend(folder / "tokenizer.json")
    settings = folder / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    special = _special_tokens(config)
    source = _template_source(folder, config)
    own_eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    template = ChatTemplate(source, special) if source is not None else None
    return Tokenizer(backend, template, {*eos_token_ids, *([own_eos] if own_eos is not None else [])})


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        raise ModelError(f"model folder {path.parent} has no {path.name}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path} cannot be read: {error}") from error


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {name: config[name] for name in _SPECIAL if config.get(name)}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return source
