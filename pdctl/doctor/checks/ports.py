"""Whether the planned ports can be listened on."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.units import number_list


def check_ports(facts: Facts) -> Iterator[Finding]:
    """Privileged ports are an error; those that an outgoing connection may get first, a warning."""
    for name, host in facts.hosts.items():
        ports = {port for process in facts.processes_on(name) for port in process.given_ports}
        risky = {port for port in ports if host.system.ports.gives_out(port)}
        low = {port for port in ports if port < host.system.ports.lowest}
        if low:
            yield _privileged(host, low)
        if risky:
            yield _given_out(host, risky)
        if sound := ports - risky - low:
            yield Finding("ok", name, "ports", f"free: {number_list(sound)}")


def _privileged(host: HostFacts, ports: set[int]) -> Finding:
    text = f"only root may listen on {number_list(ports)}: those below {host.system.ports.lowest} are privileged"
    remedy = f"sudo sysctl net.ipv4.ip_unprivileged_port_start={min(ports)}, or choose a higher one"
    return Finding("error", host.name, "ports", text, remedy)


def _given_out(host: HostFacts, ports: set[int]) -> Finding:
    text = f"any outgoing connection may get {number_list(ports)}: the kernel gives out {_range(host)}"
    reserved = ",".join(filter(None, [host.system.ports.reserved, *map(str, sorted(ports))]))
    return Finding("warning", host.name, "ports", text, f"sudo sysctl net.ipv4.ip_local_reserved_ports={reserved}")


def _range(host: HostFacts) -> str:
    first, last = host.system.ports.ephemeral
    return f"{first}-{last}"
