"""What is to be measured, and how it is written on a command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pdctl.errors import ExitCode, PdctlError

TRANSPORTS = ("ipc", "rdma", "tcp")
UNIT_BYTES = 1024
_SUFFIXES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SIZE = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)


class TransferBenchError(PdctlError):
    """A transport broke down, or none could be measured."""

    exit_code = ExitCode.BENCH_ERRORS


@dataclass(frozen=True, slots=True)
class Sweep:
    """Transports x block sizes x blocks in a push."""

    transports: tuple[str, ...]
    block_sizes: tuple[int, ...]  # bytes
    in_flight: tuple[int, ...]
    seconds: float  # of a cell


def parse_transports(text: str) -> tuple[str, ...]:
    """Read "ipc,tcp". Raises ValueError."""
    names = _parts(text)
    for name in names:
        if name not in TRANSPORTS:
            raise ValueError(f"{name!r} is none of {', '.join(TRANSPORTS)}")
    return names


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read "64KiB,1M" as bytes; a K is 1024. Raises ValueError."""
    return tuple(dict.fromkeys(map(_size, _parts(text))))


def parse_counts(text: str) -> tuple[int, ...]:
    """Read "1,8,64". Raises ValueError."""
    for part in _parts(text):
        if not part.isdecimal() or not int(part):
            raise ValueError(f"{part!r} is not a whole number of at least 1")
    return tuple(dict.fromkeys(map(int, _parts(text))))


def show_size(nbytes: int) -> str:
    """Return a block's size in the largest unit that divides it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes // 2**10} KiB"


def _parts(text: str) -> tuple[str, ...]:
    parts: Sequence[str] = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError("it is empty")
    return tuple(dict.fromkeys(parts))


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64K, 1MiB or 65536")
    nbytes = int(match[1]) * _SUFFIXES[match[2].lower()]
    if not nbytes or nbytes % UNIT_BYTES:
        raise ValueError(f"{text!r} is not a multiple of {UNIT_BYTES} bytes")
    return nbytes
