"""The header of a GGUF file: metadata, and where the tensors lie. Raises ModelError for a damaged or truncated file.

The `gguf` package's own reader takes seconds on a vocabulary of usual size, because it keeps an array per string.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from engine.errors import ModelError

_Value = TypeVar("_Value")

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


class TensorInfo(NamedTuple):
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]  # rows first, as torch has it
    type: GGMLQuantizationType
    offset: int  # from the start of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a GGUF file says before its tensor data."""

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, TensorInfo]

    def get(self, key: str, kind: type[_Value], default: _Value | None = None) -> _Value:
        """The metadata value. Raises ModelError if it is not of that kind, or absent and without a default."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path.name} has no metadata {key!r}, which this engine needs")
        if not isinstance(value, kind):
            raise ModelError(
                f"{self.path.name} is damaged: metadata {key!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value


def read_header(path: Path) -> GGUFHeader:
    """Read the header and check that the file holds all that the header promises."""
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path.name} is empty")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Reader(path, data).header()
    except (struct.error, IndexError) as error:
        raise ModelError(f"{path.name} is truncated: its {size:,} bytes end within the header") from error
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ModelError(f"{path.name} is damaged: {error}") from error
    expected = max((tensor.offset + tensor.nbytes for tensor in header.tensors.values()), default=0)
    if size < expected:
        raise ModelError(f"{path.name} is truncated: {size:,} bytes, {expected:,} expected; fetch it again")
    return header


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._offset = 0

    def header(self) -> GGUFHeader:
        if self._data[:4] != b"GGUF":
            raise ModelError(f"{self._path.name} is no GGUF file")
        self._offset = 4
        version = self._count("I")
        if version not in _VERSIONS:
            raise ModelError(f"{self._path.name} has GGUF version {version}; versions {_VERSIONS} can be read")
        num_tensors, num_values = self._count("Q"), self._count("Q")
        metadata = {self._string(): self._value(GGUFValueType(self._count("I"))) for _ in range(num_values)}
        infos = [self._tensor_info() for _ in range(num_tensors)]
        header = GGUFHeader(self._path, metadata, {})
        alignment = header.get("general.alignment", int, _DEFAULT_ALIGNMENT)
        start = -(-self._offset // alignment) * alignment
        header.tensors.update((name, info._replace(offset=start + info.offset)) for name, info in infos)
        return header

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._string()
        shape = tuple(reversed(self._scalars("Q", self._count("I"))))
        kind = GGMLQuantizationType(self._count("I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        return name, TensorInfo(shape, kind, self._count("Q"), prod(shape) // block * block_bytes)

    def _value(self, kind: GGUFValueType) -> object:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalars(_SCALARS[kind], 1)[0]
        item, count = GGUFValueType(self._count("I")), self._count("Q")
        if item == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        if item == GGUFValueType.ARRAY:
            return [self._value(item) for _ in range(count)]
        return list(self._scalars(_SCALARS[item], count))

    def _string(self) -> str:
        (length,) = _LENGTH.unpack_from(self._data, self._offset)
        start = self._offset + _LENGTH.size
        self._offset = start + length
        if self._offset > len(self._data):
            raise IndexError(self._offset)
        return self._data[start : self._offset].decode()

    def _count(self, code: str) -> int:
        return int(self._scalars(code, 1)[0])

    def _scalars(self, code: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        values = layout.unpack_from(self._data, self._offset)
        self._offset += layout.size
        return values
