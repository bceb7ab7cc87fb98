"""Which safetensors files a model folder has, and whether they are whole. No torch here."""

import json
import struct
from pathlib import Path

from engine.errors import ModelError
from engine.loading.json_files import read_json

_LENGTH = struct.Struct("<Q")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def find_shards(folder: Path) -> dict[str, Path]:
    """The file of each tensor. Raises ModelError if a file is missing, truncated or damaged."""
    shards = _shards(folder)
    tensors = {name: shard for shard in shards for name in _tensor_names(shard)}
    if not tensors:
        raise ModelError(f"model folder {folder} has no weights")
    return tensors


def _shards(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        weight_map = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{folder / _INDEX} has no 'weight_map'")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    raise ModelError(f"model folder {folder} has no {_SINGLE} and no {_INDEX}; other weight files are not read")


def _tensor_names(path: Path) -> list[str]:
    """The tensors of a file that is as long as its header says."""
    if not path.is_file():
        raise ModelError(f"model folder {path.parent} lacks {path.name}, which its index names")
    size = path.stat().st_size
    header, start = _header(path, size)
    try:
        expected = start + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path.name} is damaged: its header does not say where its tensors lie") from error
    if size < expected:
        raise ModelError(f"{path.name} is truncated: {size:,} bytes, {expected:,} expected; fetch it again")
    return list(header)


def _header(path: Path, size: int) -> tuple[dict[str, dict[str, list[int]]], int]:
    with path.open("rb") as file:
        prefix = file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else size
        if _LENGTH.size + length > size:
            raise ModelError(f"{path.name} is truncated: its {size:,} bytes end within the header")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return header, _LENGTH.size + length
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path.name} is damaged: its header is no JSON object") from error
