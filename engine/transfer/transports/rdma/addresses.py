"""How a port is addressed, and which ports of two engines are used together. Needs no pyverbs."""

from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

import msgspec

from engine.errors import TransferError


class Gid(NamedTuple):
    """An entry of a port's GID table that is set."""

    place: int
    address: IPv6Address
    roce_v2: bool

    def __str__(self) -> str:
        return f"{self.place} ({_short(self.address)})"


class PortAddress(msgspec.Struct, frozen=True):
    """What the other side must know of a port. Travels."""

    name: str  # "mlx5_0:1"
    ethernet: bool
    lid: int  # 0 on Ethernet
    gid: str  # all its digits
    mtu: int  # active, as enum ibv_mtu

    def __str__(self) -> str:
        return f"{self.name} ({_short(IPv6Address(self.gid)) if self.ethernet else f'lid {self.lid}'})"


def choose_gid(gids: Sequence[Gid], *, ethernet: bool, asked: int | None) -> Gid:
    """The GID to use: the asked one; else of RoCE v2 an IPv4 address, a global one, a link-local one; else the first.

    Raises TransferError with what the port has.
    """
    fit = [gid for gid in gids if gid.roce_v2 or not ethernet]
    kind = "RoCE v2 GID" if ethernet else "GID"
    if asked is not None:
        chosen = next((gid for gid in fit if gid.place == asked), None)
        if chosen is None:
            known = ", ".join(str(gid) for gid in fit) or "none"
            raise TransferError(f"its GID {asked} is no {kind}; it has {known}")
        return chosen
    if not fit:
        raise TransferError(f"it has no {kind}: its interface needs an IP address")
    return min(fit, key=_scope) if ethernet else fit[0]


def pair_ports(source: Sequence[PortAddress], target: Sequence[PortAddress]) -> list[tuple[int, int]]:
    """Prefill's and decode's ports by their places: nth with nth of the same kind of link, until each is in a pair.

    Raises TransferError where there is none.
    """
    pairs: list[tuple[int, int]] = []
    for ethernet in (False, True):
        ours = [place for place, port in enumerate(source) if port.ethernet == ethernet]
        theirs = [place for place, port in enumerate(target) if port.ethernet == ethernet]
        if ours and theirs:
            most = max(len(ours), len(theirs))
            pairs += [(ours[n % len(ours)], theirs[n % len(theirs)]) for n in range(most)]
    if not pairs:
        raise TransferError(f"no link in common: prefill has {_kinds(source)}, decode has {_kinds(target)}")
    return pairs


def _short(address: IPv6Address) -> str:
    return str(address.ipv4_mapped or address)


def _scope(gid: Gid) -> int:
    if gid.address.ipv4_mapped is not None:
        return 0
    return 2 if gid.address.is_link_local else 1


def _kinds(ports: Sequence[PortAddress]) -> str:
    return ", ".join(f"{port.name} ({'Ethernet' if port.ethernet else 'InfiniBand'})" for port in ports) or "no NIC"
