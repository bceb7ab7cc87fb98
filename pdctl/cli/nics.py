"""`pdctl nics`: a host's RDMA NICs, and which of them are nearest to its GPUs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pdctl.cli.terminal import Terminal
    from pdctl.planning.inventory import Inventory, Nic, PciPlace

LOCAL = "local"
_UNKNOWN = "-"


def nics(
    topology: Annotated[Path | None, typer.Argument(help="The topology file that names the host.")] = None,
    host: Annotated[str, typer.Option(help="A host of the topology file, or local: this machine.")] = LOCAL,
    json: Annotated[bool, typer.Option("--json", help="Print everything that is known as JSON.")] = False,
    export: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(help="Print KVCACHE_RDMA_NICS=... only: those nearest to the GPUs, or all that can be used."),
    ] = None,
) -> None:
    """Show the RDMA NICs of a host and, for each GPU, those that are nearest to it.

    Ports that are left out are shown with the reason. `export $(pdctl nics --export gpu)` sets the variable in a shell.
    """
    from pdctl.cli.terminal import Terminal

    if json and export:
        raise typer.BadParameter("--json and --export do not go together")
    inventory = _probe(topology, host)
    terminal = Terminal()
    if export:
        terminal.print(_export(host, inventory, export))
    elif json:
        terminal.print_json(_as_data(host, inventory))
    else:
        _show(inventory, terminal)


def _probe(path: Path | None, name: str) -> "Inventory":
    import asyncio

    from pdctl.deployment.store import state_root
    from pdctl.hosts.open import open_host
    from pdctl.planning.inventory import Inventory
    from pdctl.planning.probing import topology_host
    from pdctl.topology.loading import load_topology
    from pdctl.validation import nearest

    topology = load_topology(path)
    if name not in (LOCAL, *topology.hosts):
        raise typer.BadParameter(f"--host: unknown host {name!r}, {nearest(name, [LOCAL, *topology.hosts])}")
    host = topology_host(topology, name) if name in topology.hosts else open_host(name)
    answer = asyncio.run(host.probe(state_root(), []))
    return Inventory.model_validate(answer)


def _export(host: str, inventory: "Inventory", of: str) -> str:
    from pdctl.errors import PlanError
    from pdctl.planning.nics import NICS_VARIABLE, device_names, nics_of_all_gpus
    from pdctl.planning.usable_nics import reasons_left_out, usable_nics

    if of == "gpu" and not (inventory.gpus or inventory.gpu_places):
        raise PlanError(f"host {host}: no GPU was found: use --export cpu")
    chosen = nics_of_all_gpus(inventory) if of == "gpu" else usable_nics(inventory.nics)
    if not chosen:
        left_out = [f"{_name(nic)} {reason}" for nic, reason in reasons_left_out(inventory.nics).items()]
        raise PlanError(f"host {host}: no RDMA NIC can be used", detail="\n".join(left_out) or "there is none")
    return f"{NICS_VARIABLE}={','.join(device_names(chosen))}"


def _as_data(host: str, inventory: "Inventory") -> dict[str, Any]:
    from pdctl.planning.nics import nics_by_gpu
    from pdctl.planning.usable_nics import choose_gid, reasons_left_out

    ports = []
    for nic, reason in reasons_left_out(inventory.nics).items():
        gid = choose_gid(nic)
        ports.append({**nic.model_dump(), "gid": gid and gid.model_dump(), "left_out": reason})
    gpus = [
        {
            "gpu": found.gpu,
            "place": found.place and found.place.model_dump(),
            "distance": str(found.distance) if found.nics else None,
            "nics": [{"device": nic.device, "port": nic.port} for nic in found.nics],
        }
        for found in nics_by_gpu(inventory)
    ]
    return {
        "host": host,
        "nics": ports,
        "gpus": gpus,
        "gpu_problem": inventory.gpu_problem,
        "nics_in_environment": inventory.nics_in_environment,
    }


def _show(inventory: "Inventory", terminal: "Terminal") -> None:
    from pdctl.planning.nics import NICS_VARIABLE

    if inventory.gpu_problem:
        terminal.warning(inventory.gpu_problem)
    if not inventory.nics:
        terminal.print("No RDMA devices.")
        return
    terminal.print(_nic_table(inventory))
    if inventory.gpus or inventory.gpu_places:
        terminal.print()
        terminal.print(_gpu_table(inventory))
    if inventory.nics_in_environment is not None:
        terminal.print(f"\n{NICS_VARIABLE}={inventory.nics_in_environment} is set here: engines get that instead.")


def _nic_table(inventory: "Inventory") -> "Table":
    from pdctl.planning.usable_nics import reasons_left_out

    table = _table("nic", "state", "rate", "link", "netdev", "numa", "pci", "address", "left out")
    for nic, reason in reasons_left_out(inventory.nics).items():
        netdev = f"{nic.netdev} ({', '.join(nic.bond)})" if nic.bond else nic.netdev or _UNKNOWN
        address = _address(nic)
        table.add_row(
            *(_name(nic), nic.state, nic.rate, nic.link_layer, netdev, _numa(nic.place), _pci(nic.place)),
            *(address, reason or ""),
        )
    return table


def _gpu_table(inventory: "Inventory") -> "Table":
    from pdctl.planning.nics import nics_by_gpu

    table = _table("gpu", "numa", "pci", "nearest nics", "distance")
    for found in nics_by_gpu(inventory):
        number = _UNKNOWN if found.gpu is None else str(found.gpu)
        nearest = ", ".join(map(_name, found.nics)) or _UNKNOWN
        distance = str(found.distance) if found.nics else _UNKNOWN
        table.add_row(number, _numa(found.place), _pci(found.place), nearest, distance)
    return table


def _table(*headers: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header)
    return table


def _name(nic: "Nic") -> str:
    return f"{nic.device}:{nic.port}"


def _numa(place: "PciPlace | None") -> str:
    return _UNKNOWN if place is None or place.numa_node is None else str(place.numa_node)


def _pci(place: "PciPlace | None") -> str:
    return _UNKNOWN if place is None else place.address


def _address(nic: "Nic") -> str:
    """The GID that is used, and of InfiniBand the LID."""
    from ipaddress import IPv6Address

    from pdctl.planning.usable_nics import choose_gid

    gid = choose_gid(nic)
    lid = [f"lid {nic.lid}"] if nic.link_layer == "InfiniBand" else []
    address = gid and IPv6Address(gid.gid)
    return ", ".join([*lid, *([f"gid {gid.index} {address.ipv4_mapped or address}"] if gid and address else [])])
