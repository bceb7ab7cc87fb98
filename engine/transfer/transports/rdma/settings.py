"""What the environment says about RDMA."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import TransferError

NICS = "KVCACHE_RDMA_NICS"
GID_INDEX = "KVCACHE_RDMA_GID_INDEX"
TIMEOUT = "KVCACHE_IB_TIMEOUT"

# 4.096 us * 2^16 = 0.27 s until a packet is sent again, and 8 tries: a NIC whose path is dead fails after 2.1 s (up to
# four times that on some), well before the link above gives up its peer, and a switch may be busy for so long.
_DEFAULT_TIMEOUT = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """Which NICs to use, and how."""

    nics: tuple[str, ...] = ()  # "mlx5_0" or "mlx5_0:1"; none: all that can be used
    gid_index: int | None = None  # of every port; None: chosen
    timeout: int = _DEFAULT_TIMEOUT  # of verbs: 4.096 us * 2^timeout


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the variables. Raises TransferError for one that is no number or out of its range."""
    names = [name.strip() for name in environment.get(NICS, "").split(",")]
    gid_index = environment.get(GID_INDEX)
    return Settings(
        nics=tuple(dict.fromkeys(name for name in names if name)),
        gid_index=_number(GID_INDEX, gid_index, 0, 255) if gid_index else None,
        timeout=_number(TIMEOUT, environment.get(TIMEOUT) or str(_DEFAULT_TIMEOUT), 1, 31),
    )


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise TransferError(f"{name} is {text!r}: it must be a number from {least} to {most}")
    return int(text)
