"""Whether a registration without the deployment's token may be believed: by who sends it, and from where."""

import ipaddress
import socket
from collections.abc import Mapping

import msgspec

from pdctl.router.engines.instance import Registration
from pdctl.router.settings import Role
from pdctl.router.upstream.pool import address

# All that registers without a token is FastDeploy's, which names no model: the engine is asked for that.
PROTOCOL = "fastdeploy"


def refusal(admitted: Mapping[str, Role], registration: Registration, peer: str) -> str | None:
    """Why a registration that comes from the IP address `peer` needs the token; None if it does not.

    It has to be one of the engines that may do without, by its address and role, and come from that engine's host.
    """
    key = address(registration.host_ip, registration.port)
    role = admitted.get(key)
    if role is None:
        return f"the registration of {key} needs the deployment's token"
    if registration.role != role:
        return f"{key} is to be {role}: registering as {registration.role} needs the deployment's token"
    if registration.protocol != PROTOCOL:
        return f"registering with protocol {registration.protocol} needs the deployment's token"
    if not _is_from(registration.host_ip, peer):
        return (
            f"the registration of {key} comes from {peer}: without the deployment's token it has to come from "
            f"{registration.host_ip}, which the engine is known by (in pdctl's topology: its host's `address`)"
        )
    return None


def without_claims(registration: Registration) -> Registration:
    """A registration without what makes the router send tokens or requests elsewhere than to the engine's API."""
    return msgspec.structs.replace(registration, model="", max_model_len=None, bootstrap_port=0, kv_events=False)


def _is_from(host: str, peer: str) -> bool:
    """Whether the host with an address sends as this peer; this machine may use any of its own addresses."""
    one, other = _plain(host), _plain(peer)
    return one == other or (is_own(one) and is_own(other))


def is_own(ip: str) -> bool:
    """Whether this machine has an address: only then can it be bound."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def _plain(ip: str) -> str:
    """An address as IPv4 where it is that: a socket for both families says `::ffff:10.0.0.1`."""
    parsed = ipaddress.ip_address(ip.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
