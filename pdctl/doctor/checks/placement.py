"""Whether the hosts can carry the topology."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, used_hosts
from pdctl.doctor.finding import Finding


def check_placement(facts: Facts) -> Iterator[Finding]:
    """What `up` would refuse is an error."""
    if facts.refusal is not None:
        yield Finding("error", "", "placement", str(facts.refusal))
    elif facts.plan is None:
        missing = [name for name in used_hosts(facts.topology) if name not in facts.hosts]
        yield Finding("warning", "", "placement", f"not known without {', '.join(missing)}")
    else:
        count = len(facts.plan.processes)
        yield Finding("ok", "", "placement", f"{count} processes on {', '.join(facts.plan.hosts)}")
