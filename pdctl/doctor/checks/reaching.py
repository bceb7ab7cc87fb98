"""Whether each host can be reached, and whether its clock is right."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, HostFacts, used_hosts
from pdctl.doctor.finding import Finding
from pdctl.errors import HostUnreachableError, PdctlError, StepTimeoutError

CLOCK_S = 1.0  # logs of several hosts are shown in the order of their times


def check_reached(facts: Facts) -> Iterator[Finding]:
    """A host that does not answer is an error."""
    for name in used_hosts(facts.topology):
        ssh = facts.topology.hosts[name].ssh
        if name in facts.silent:
            yield _not_reached(name, ssh, facts.silent[name])
        else:
            yield Finding("ok", name, "reach", f"`ssh {ssh}` works" if ssh else "this machine")


def check_clocks(facts: Facts) -> Iterator[Finding]:
    """A clock is wrong by what the time that the question took cannot explain."""
    for name, host in facts.hosts.items():
        if host.ssh is None:
            continue
        low, high = clock_bounds(host)
        if max(low, -high) <= CLOCK_S:
            apart = max(abs(low), abs(high))
            yield Finding("ok", name, "clock", f"at most {apart:.1f} s apart from this machine's")
            continue
        difference = f"{low:.1f} s ahead of" if low > 0 else f"{-high:.1f} s behind"
        yield Finding(
            "warning", name, "clock", f"at least {difference} this machine's", "sudo timedatectl set-ntp true"
        )


def clock_bounds(host: HostFacts) -> tuple[float, float]:
    """How far a host's clock is ahead of this machine's: at least, and at most."""
    (asked, answered), (began, ended) = host.asked, host.system.clock
    return ended - answered, began - asked


def _not_reached(name: str, ssh: str | None, error: PdctlError) -> Finding:
    remedy = f"ssh -v {ssh} true" if ssh and isinstance(error, HostUnreachableError | StepTimeoutError) else ""
    return Finding("error", name, "reach", str(error).removeprefix(f"host {name}: "), remedy)
