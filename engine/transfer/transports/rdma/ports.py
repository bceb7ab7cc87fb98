"""The RDMA ports of this host that are used, opened."""

import logging
from dataclasses import dataclass
from ipaddress import IPv6Address

from pyverbs.device import Context, Device, get_device_list
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.transports.rdma.addresses import Gid, PortAddress, choose_gid
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.settings import NICS, Settings

logger = logging.getLogger(__name__)

_STATES = {0: "NOP", 1: "DOWN", 2: "INIT", 3: "ARMED", 4: "ACTIVE", 5: "ACTIVE_DEFER"}


@dataclass(frozen=True, slots=True)
class Port:
    """One port, its device open."""

    address: PortAddress
    number: int  # on its device
    gid_index: int
    context: Context
    pd: PD

    def close(self) -> None:
        """Close the device. Nothing made from it is in use any more."""
        self.pd.close()
        self.context.close()


def open_ports(settings: Settings) -> list[Port]:
    """Open the ports to use, in the order in which the settings name them. Raises TransferError with the reasons.

    A named one that cannot be used is told of in the log, as long as another one can.
    """
    devices = _devices()
    wanted = settings.nics or tuple(devices)
    reasons: list[str] = []
    ports: list[Port] = []
    for name in wanted:
        found, why_not = _open(name, devices, settings.gid_index)
        ports += found
        reasons += why_not
    if not ports:
        raise TransferError("no NIC can be used: " + ("; ".join(reasons) or "this host has no RDMA device"))
    for reason in reasons:
        logger.log(logging.WARNING if settings.nics else logging.INFO, "RDMA: %s", reason)
    return ports


def _devices() -> dict[str, Device]:
    try:
        return {device.name.decode(): device for device in get_device_list()}
    except PyverbsError as error:
        raise TransferError(f"no RDMA device: {error}") from None


def _open(name: str, devices: dict[str, Device], gid_index: int | None) -> tuple[list[Port], list[str]]:
    """The ports of a device, or the one that `name` says, that can be used; and why others cannot."""
    device, _, only = name.partition(":")
    if device not in devices:
        return [], [f"{device} of {NICS} does not exist; this host has {', '.join(devices) or 'none'}"]
    if devices[device].node_type != enums.IBV_NODE_CA:
        return [], [f"{device} is no InfiniBand or RoCE device"]
    try:
        with Context(name=device) as context:
            count = context.query_device().phys_port_cnt
    except PyverbsError as error:
        return [], [f"{device} cannot be opened: {error}"]
    numbers = [str(number) for number in range(1, count + 1)]
    if only and only not in numbers:
        return [], [f"{name} of {NICS} does not exist; {device} has {count} port(s)"]
    ports, reasons = [], []
    for number in [only] if only else numbers:
        try:
            ports.append(_open_port(device, int(number), gid_index))
        except (TransferError, PyverbsError) as error:
            reasons.append(f"{device}:{number} cannot be used: {error}")
    return ports, reasons


def _open_port(device: str, number: int, gid_index: int | None) -> Port:
    context = Context(name=device)
    try:
        attributes = context.query_port(number)
        if attributes.state != enums.IBV_PORT_ACTIVE:
            raise TransferError(f"it is {_STATES.get(attributes.state, attributes.state)}, not ACTIVE")
        ethernet = attributes.link_layer == enums.IBV_LINK_LAYER_ETHERNET
        gid = choose_gid(_gids(context, number, attributes.gid_tbl_len), ethernet=ethernet, asked=gid_index)
        address = PortAddress(
            f"{device}:{number}", ethernet, attributes.lid, gid.address.exploded, attributes.active_mtu
        )
        port = Port(address, number, gid.place, context, PD(context))
    except BaseException:
        context.close()
        raise
    logger.info("RDMA: using %s, GID %s, MTU %d", address.name, gid, 128 << address.mtu)
    return port


def _gids(context: Context, port: int, most: int) -> list[Gid]:
    """The port's GIDs that are set."""
    count = most * context.query_device().phys_port_cnt
    return [
        Gid(entry.gid_index, IPv6Address(entry.gid_str()), entry.gid_type == enums.IBV_GID_TYPE_ROCE_V2)
        for entry in context.query_gid_table(count)
        if entry.port_num == port
    ]
