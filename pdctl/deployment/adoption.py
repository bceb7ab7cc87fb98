"""Taking up a deployment that another machine has started: its plan, state and token lie with its agents."""

import asyncio
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import DeploymentFolder, State
from pdctl.errors import HostUnreachableError, NotFoundError, StateError
from pdctl.hosts.client import AgentCallError, AgentGoneError
from pdctl.hosts.host import Host
from pdctl.planning.plan import Plan
from pdctl.planning.probing import topology_host
from pdctl.topology.models import Topology

_NAME = "deployment"  # what the agents call it among their secrets


class _Record(BaseModel):
    plan: Plan
    state: State
    topology: str | None
    token: str


async def publish(deployment: Deployment) -> None:
    """Leave with the agents what another machine needs to take it up. A host that is not reached has none."""
    folder = deployment.folder
    topology = folder.read_topology()
    record = _Record(
        plan=deployment.plan,
        state=deployment.state,
        topology=topology.model_dump_json(exclude_unset=True) if topology else None,
        token=folder.read_token(),
    )
    text = record.model_dump_json()

    async def leave(host: str) -> None:
        with suppress(AgentGoneError, AgentCallError, HostUnreachableError):
            client = await deployment.client(host)
            await client.call("keep", name=_NAME, text=text)

    await asyncio.gather(*(leave(host) for host in deployment.hosts))


async def adopt(topology: Topology, folder: DeploymentFolder) -> None:
    """Write the files of a deployment that runs on a topology's hosts. The caller holds the folder's lock.

    Raises NotFoundError where none of the hosts has one of that name, HostUnreachableError where that cannot be known,
    and StateError for what cannot be taken up.
    """
    hosts = [topology_host(topology, name) for name, host in topology.hosts.items() if host.ssh]
    found = await asyncio.gather(*(_kept(host, folder) for host in hosts))
    records = [record for text in found if isinstance(text, str) and (record := _read(text)) is not None]
    unreached = [error for error in found if isinstance(error, HostUnreachableError)]
    if not records and unreached:
        raise unreached[0]
    if not records:
        names = ", ".join(host.name for host in hosts)
        raise NotFoundError(f"no deployment {folder.name!r} that this pdctl knows runs on the topology's hosts {names}")
    record = max(records, key=lambda record: record.state.started)
    local = [name for name, host in record.plan.hosts.items() if host.ssh is None]
    if local:
        raise StateError(
            f"deployment {folder.name!r} has processes on the machine that started it (host {', '.join(local)}):"
            " look at it from there"
        )
    folder.write_token(record.token)
    folder.write_plan(record.plan)
    folder.write_topology(Topology.model_validate_json(record.topology) if record.topology else None)
    folder.write_state(record.state)


async def _kept(host: Host, folder: DeploymentFolder) -> str | HostUnreachableError | None:
    """What `publish` has left there; None: nothing."""
    try:
        client = await host.connect(host.folder_of(folder.path))
    except HostUnreachableError as error:
        return error
    except AgentGoneError:
        return None
    try:
        return str(await client.call("kept", name=_NAME))
    except (AgentGoneError, AgentCallError):
        return None
    finally:
        await client.close()


def _read(text: str) -> _Record | None:
    """None for what another version of pdctl has left: it cannot be taken up by this one."""
    try:
        return _Record.model_validate_json(text)
    except ValidationError:
        return None
