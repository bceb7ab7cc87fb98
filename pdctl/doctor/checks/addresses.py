"""Whether each host has an address of its own, and whether all send packets of one size."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts
from pdctl.doctor.finding import Finding

_LOOPBACK = "127."


def check_addresses(facts: Facts) -> Iterator[Finding]:
    """Each host has an address of its own, at which its processes can listen and others reach them."""
    if not facts.is_spread:
        return
    owners: dict[str, str] = {}
    for name, host in facts.hosts.items():
        remedy = f"`hosts: {{{name}: {{address: ...}}}}` in the topology file"
        owner = owners.setdefault(host.address, name)
        if host.address.startswith(_LOOPBACK):
            text = f"no address at which other hosts reach it: it has no default route, and reports {host.address}"
            yield Finding("error", name, "address", text, remedy)
        elif owner != name:
            yield Finding("error", name, "address", f"{host.address} is that of host {owner} too", remedy)
        elif host.netdev is None:
            text = f"{host.address} is none of its own: its processes cannot listen there"
            yield Finding("error", name, "address", text, f"{remedy}; `ip -4 addr` shows which it has")
        else:
            yield Finding("ok", name, "address", f"{host.address} on {host.netdev.name}")


def check_mtu(facts: Facts) -> Iterator[Finding]:
    """Where hosts send packets of different sizes, a switch may drop the larger ones without a word."""
    mtus = {name: host.netdev.mtu for name, host in facts.hosts.items() if host.netdev}
    if not facts.is_spread or len(set(mtus.values())) <= 1:
        return
    shown = ", ".join(f"{mtu} on {name}" for name, mtu in mtus.items())
    smallest = min(mtus.values())
    remedies = [
        f"{host.netdev.name} of {name}: sudo ip link set {host.netdev.name} mtu {smallest}"
        for name, host in facts.hosts.items()
        if host.netdev and host.netdev.mtu != smallest
    ]
    yield Finding("warning", "", "mtu", f"the hosts have different ones: {shown}", "; ".join(remedies))
