"""Which RDMA ports of a host can carry KV, why the others cannot, and the GID by which a port is addressed."""

from collections.abc import Sequence
from ipaddress import IPv6Address

from pdctl.planning.inventory import Gid, Nic

ROCE_V2 = "RoCE v2"


def usable_nics(nics: Sequence[Nic]) -> list[Nic]:
    """Return the ports that can be used."""
    return [nic for nic, reason in reasons_left_out(nics).items() if reason is None]


def reasons_left_out(nics: Sequence[Nic]) -> dict[Nic, str | None]:
    """Return why each port is left out; None for a port that can be used."""
    reasons = {nic: _unfit(nic) for nic in nics}
    for rule in (_virtual, _in_software, _other_link_layer):
        kept = [nic for nic, reason in reasons.items() if reason is None]
        reasons |= {nic: rule(nic, kept) for nic in kept}
    return reasons


def choose_gid(nic: Nic) -> Gid | None:
    """Return the GID that stands for a port: of an Ethernet one the best of RoCE v2, of InfiniBand the first.

    Best is one that is an IPv4 address, then a global IPv6 address, then a link-local one.
    """
    if nic.link_layer != "Ethernet":
        return next(iter(nic.gids), None)
    return min((gid for gid in nic.gids if gid.type == ROCE_V2), key=_scope, default=None)


def _scope(gid: Gid) -> int:
    address = IPv6Address(gid.gid)
    if address.ipv4_mapped is not None:
        return 0
    return 2 if address.is_link_local else 1


def _unfit(nic: Nic) -> str | None:
    """Say what a port lacks, whatever else the host has."""
    if nic.node_type != "CA":
        return f"is no InfiniBand or RoCE device, but {nic.node_type or 'unknown'}"
    if nic.state != "ACTIVE":
        return f"is {nic.state} ({nic.phys_state})"
    if not nic.can_open:
        return "cannot be opened: no /dev/infiniband/uverbs* that this user may write is its own"
    if nic.link_layer == "Ethernet" and choose_gid(nic) is None:
        return f"has no {ROCE_V2} GID: give its interface {nic.netdev or ''} an address"
    return None


def _virtual(nic: Nic, kept: list[Nic]) -> str | None:
    owner = nic.physical_function and next(
        (other for other in kept if other.place and other.place.address == nic.physical_function), None
    )
    return f"is a virtual function of {owner.device}, which is used" if owner else None


def _in_software(nic: Nic, kept: list[Nic]) -> str | None:
    hardware = next((other for other in kept if not other.software), None)
    return f"works in software, beside {hardware.device}" if nic.software and hardware else None


def _other_link_layer(nic: Nic, kept: list[Nic]) -> str | None:
    """InfiniBand and Ethernet do not reach each other: the one with more bandwidth is kept."""
    layers = sorted({other.link_layer for other in kept}, reverse=True)  # InfiniBand first where they are equal
    best = max(layers, key=lambda layer: sum(other.gigabits for other in kept if other.link_layer == layer))
    return None if nic.link_layer == best else f"is {nic.link_layer}: this host has more bandwidth on {best}"
