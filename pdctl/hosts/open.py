"""From how a host is written to the host."""

from pdctl.errors import PlanError
from pdctl.hosts.host import Host
from pdctl.hosts.local import LocalHost


def open_host(name: str, ssh: str | None = None) -> Host:
    """The host; nothing is sent to it yet."""
    if ssh is not None:
        raise PlanError(f"host {name}: reaching a host by ssh ({ssh}) is not built yet: use `{name}: local`")
    return LocalHost(name)
