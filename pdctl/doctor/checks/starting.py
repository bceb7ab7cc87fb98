"""Whether processes can be started as the topology says."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts
from pdctl.doctor.finding import Finding


def check_starting(facts: Facts) -> Iterator[Finding]:
    """A folder to start in that is not there, or a setup without a shell, is an error."""
    for name, host in facts.hosts.items():
        for folder in host.system.absent_workdirs:
            yield Finding("error", name, "workdir", f"there is no folder {folder}", f"mkdir -p {folder}")
        groups = facts.groups_on(name)
        if not host.system.has_bash and (facts.topology.hosts[name].setup or any(group.setup for group in groups)):
            yield Finding("error", name, "setup", "there is no bash to run it", "install bash")
