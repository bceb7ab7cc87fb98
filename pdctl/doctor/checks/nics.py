"""Whether KV can go by RDMA: the NICs, the fabric they are on, and the memory that they may lock."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.units import size
from pdctl.planning.inventory import Inventory, Nic
from pdctl.planning.usable_nics import choose_gid, reasons_left_out, usable_nics


def check_nics(facts: Facts) -> Iterator[Finding]:
    """One that somebody could mend is a warning; one that an engine is told to use and is not there, an error."""
    for name, host in facts.engine_hosts.items():
        reasons = reasons_left_out(host.inventory.nics)
        used = [nic for nic, reason in reasons.items() if reason is None]
        if used:
            rates = ", ".join(sorted({f"{nic.gigabits:g} Gb/s {nic.link_layer}" for nic in used}))
            yield Finding("ok", name, "nics", f"{', '.join(map(_name, used))}: {rates}")
        elif host.inventory.nics:
            why = ", ".join(f"{_name(nic)} {reason}" for nic, reason in reasons.items())
            remedy = f"pdctl nics TOPOLOGY --host {name}"
            yield Finding("warning", name, "nics", f"none can be used, KV goes by TCP: {why}", remedy)
        else:
            yield Finding("ok", name, "nics", "no RDMA devices: KV between hosts goes by TCP")
        yield from _mendable(name, {nic: reason for nic, reason in reasons.items() if reason})
        yield from _told(facts, host)


def check_fabric(facts: Facts) -> Iterator[Finding]:
    """NICs of InfiniBand and of Ethernet do not reach each other; nor does a host that has none."""
    layers = {name: _layer(host.inventory) for name, host in facts.engine_hosts.items()}
    if len(set(layers.values())) > 1:
        shown = ", ".join(f"{layer or 'none'} on {name}" for name, layer in layers.items())
        yield Finding("warning", "", "nics", f"the hosts have different kinds: {shown}: KV between these goes by TCP")


def check_memlock(facts: Facts) -> Iterator[Finding]:
    """NICs write to memory that is locked: all of the KV pool."""
    for name, host in facts.engine_hosts.items():
        if not _uses_nics(facts, host):
            continue
        limit = host.system.memlock
        if limit is None:
            yield Finding("ok", name, "memlock", "unlimited")
            continue
        yield Finding(
            "warning",
            name,
            "memlock",
            f"a process may lock {size(limit)}: NICs cannot use a larger KV pool",
            "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/rdma.conf, and log in again"
            " (a container: --ulimit memlock=-1)",
        )


def _mendable(host: str, reasons: dict[Nic, str]) -> Iterator[Finding]:
    """Those that lack something, not those that are left out because of others."""
    for nic, reason in reasons.items():
        if remedy := _remedy(nic):
            yield Finding("warning", host, "nics", f"{_name(nic)} {reason}", remedy)


def _remedy(nic: Nic) -> str | None:
    """What mends it; None where nothing is broken: a port without a cable is often meant to have none."""
    if nic.node_type != "CA":
        return None
    if nic.state == "INIT":
        return "start a subnet manager on the fabric: sudo systemctl start opensm"
    if nic.state != "ACTIVE":
        return f"sudo ip link set {nic.netdev or 'DEV'} up" if nic.phys_state == "LinkUp" else None
    if not nic.can_open:
        return "let this user open /dev/infiniband/uverbs* (a container: --device=/dev/infiniband)"
    if nic.link_layer == "Ethernet" and choose_gid(nic) is None:
        return f"sudo ip addr add ADDRESS/PREFIX dev {nic.netdev or 'DEV'}"
    return None


def _told(facts: Facts, host: HostFacts) -> Iterator[Finding]:
    present = {nic.device for nic in host.inventory.nics}
    for process in facts.processes_on(host.name):
        if absent := [device for device in process.nics if device not in present]:
            text = f"{process.name} is told to use {', '.join(absent)}: there is no such device"
            yield Finding("error", host.name, "nics", text, f"pdctl nics TOPOLOGY --host {host.name}")


def _layer(inventory: Inventory) -> str:
    return next((nic.link_layer for nic in usable_nics(inventory.nics)), "")


def _uses_nics(facts: Facts, host: HostFacts) -> bool:
    if facts.plan is None:
        return bool(usable_nics(host.inventory.nics))
    return any(process.nics for process in facts.processes_on(host.name))


def _name(nic: Nic) -> str:
    return f"{nic.device}:{nic.port}"
