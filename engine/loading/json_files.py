"""JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from engine.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises ModelError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"model folder {path.parent} has no {path.name}") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value
