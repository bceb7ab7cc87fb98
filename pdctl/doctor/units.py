"""Sizes and lists as the findings write them."""

from collections.abc import Iterable
from itertools import groupby

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count: int) -> str:
    """As in 1.5 GiB."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def number_list(numbers: Iterable[int]) -> str:
    """As in 8000, 20000-20003."""
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)


def counted(count: int, what: str) -> str:
    """As in 1 file, 2 files."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
