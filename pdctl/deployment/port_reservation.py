"""Ports on hosts that several deployments share: reserved before anything starts; others may have been faster."""

import re

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.together import together
from pdctl.errors import PdctlError, PortsTakenError, ProcessDiedError
from pdctl.planning.plan import Plan
from pdctl.planning.topology_plan import TakenPorts

TRIES = 3  # plans after the first one


async def reserve_ports(deployment: Deployment, *plans: Plan) -> None:
    """Make the ports of these plans, and no others, those of the deployment. Raises PortsTakenError."""

    async def reserve(host: str) -> tuple[str, dict[int, str]]:
        ports = {port for plan in plans for one in plan.processes if one.host == host for port in one.given_ports}
        client = await deployment.client(host)
        taken = await client.call("reserve", ports=sorted(ports))
        return host, {int(port): holder for port, holder in taken.items()}

    answers = await together(reserve(host) for host in deployment.hosts)
    taken = {host: ports for host, ports in answers if ports}
    if taken:
        raise PortsTakenError(f"ports that were free when the plan was made are not any more: {_shown(taken)}", taken)


class PortRaces:
    """The ports that a deployment has lost to faster processes, and how often it may be planned again for that."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[int, str]] = {}  # as in TakenPorts
        self._tries_left = TRIES

    def lost(self, error: PdctlError, plan: Plan) -> bool:
        """Whether a plan failed at a lost port, and another try is left; `taken` has the port then."""
        ports = _lost(error, plan)
        for host, holders in ports.items():
            self.taken.setdefault(host, {}).update(holders)
        self._tries_left -= bool(ports)
        return bool(ports) and self._tries_left >= 0


def _lost(error: PdctlError, plan: Plan) -> TakenPorts:
    if isinstance(error, PortsTakenError):
        return error.taken
    if not isinstance(error, ProcessDiedError) or not _says_so(error, plan):
        return {}
    dead = [process for process in plan.processes if process.name in error.processes and process.given_ports]
    return {one.host: dict.fromkeys(one.given_ports, f"taken when {one.name} was started") for one in dead}


def _says_so(error: ProcessDiedError, plan: Plan) -> bool:
    patterns = [trouble.pattern for trouble in plan.troubles if trouble.port_taken]
    return any(re.search(pattern, line) for pattern in patterns for line in error.detail.splitlines())


def _shown(taken: TakenPorts) -> str:
    return "; ".join(
        f"{port} of host {host} ({holder})" for host, ports in taken.items() for port, holder in ports.items()
    )
