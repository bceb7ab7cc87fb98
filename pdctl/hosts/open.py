"""From how a host is written to the host."""

from pathlib import Path

from pdctl.hosts.host import Host
from pdctl.hosts.local import LocalCarrier
from pdctl.hosts.ssh import SshCarrier, SshTarget

REMOTE_STATE = Path("~/.local/state/pdctl")


def open_host(name: str, ssh: str | None = None, *, python: str | None = None, accept_new: bool = False) -> Host:
    """The host; nothing is sent to it yet. ``ssh``: None for this machine; the rest: see SshTarget."""
    if ssh is None:
        return Host(name, LocalCarrier(name))
    return Host(name, SshCarrier(name, SshTarget(ssh, python, accept_new)), REMOTE_STATE)
