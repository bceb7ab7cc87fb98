"""The file of API keys: YAML, wrong entries refused with their line."""

import logging
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pdctl.router.access.api_keys import check_key
from pdctl.validation import Problem, refusal, validate
from pdctl.yamlfile import Document, read_yaml

log = logging.getLogger(__name__)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class KeyEntry(_Model):
    """One key."""

    name: str = Field(min_length=1, max_length=64)
    key: Annotated[str, BeforeValidator(check_key)]
    requests_per_minute: int | None = Field(None, ge=1, strict=True)
    tokens_per_minute: int | None = Field(None, ge=1, strict=True)


class _KeyFile(_Model):
    keys: list[KeyEntry] = Field(min_length=1)


def read_key_file(path: Path) -> list[KeyEntry]:
    """The keys of a file. PdctlError with the line that is wrong."""
    document = read_yaml(path)
    _check_shape(document)
    entries = validate(_KeyFile, document).keys
    _refuse_repeated(document, entries)
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("%s can be read by every user of this machine: chmod 600 it", path)
    return entries


def _check_shape(document: Document) -> None:
    """Refuse what is no list of mappings without saying what it is: it may be a key."""
    data = document.data
    keys = data.get("keys", []) if isinstance(data, dict) else None
    if not isinstance(keys, list):
        raise refusal(document, [Problem((), "expected `keys:` and a list of {name: ..., key: ...}")])
    wrong = [index for index, entry in enumerate(keys) if not isinstance(entry, dict)]
    if wrong:
        raise refusal(document, [Problem(("keys", index), "expected {name: ..., key: ...}") for index in wrong])


def _refuse_repeated(document: Document, entries: list[KeyEntry]) -> None:
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    problems = []
    for index, entry in enumerate(entries):
        first = names.setdefault(entry.name, index)
        if first != index:
            problems.append(Problem(("keys", index, "name"), f"keys[{first}] has the name {entry.name!r} already"))
        first = keys.setdefault(entry.key, index)
        if first != index:
            problems.append(Problem(("keys", index, "key"), f"is the key of {entries[first].name!r} already"))
    if problems:
        raise refusal(document, problems)
