"""Numbers as a terminal shows them: short, in familiar units."""

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def format_bytes(count: float) -> str:
    """Return ``count`` bytes in decimal units: ``1.5 GB``."""
    for unit in _BYTE_UNITS[:-1]:
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_BYTE_UNITS[-1]}"


def format_count(count: float) -> str:
    """Return a count with a suffix once it is long: ``950``, ``12.3k``, ``4.0M``."""
    if count < 9_999.5:
        return f"{count:.0f}"
    if count < 999_950:
        return f"{count / 1_000:.1f}k"
    return f"{count / 1_000_000:.1f}M"


def format_rate(rate: float) -> str:
    """Return a rate with one decimal while it is small: ``0.4``, ``87.9``, ``1250``."""
    return f"{rate:.1f}" if rate < 99.95 else format_count(rate)


def format_latency(seconds: float) -> str:
    """Return a short time with three digits: ``8.43 ms``, ``123 ms``, ``1.25 s``."""
    if seconds < 0.9995:
        return _three_digits(1000 * seconds) + " ms"
    return _three_digits(seconds) + " s"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``42s``, ``3m05s``, ``2h10m``, ``4d03h``."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02d}h"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
