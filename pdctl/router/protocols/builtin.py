"""The builtin engine and FastDeploy: both legs at once, with one body that says where the other engine is."""

from typing import TYPE_CHECKING

import msgspec

from pdctl.router.protocols.base import Bodies, PdProtocol
from pdctl.router.requests.body import Body, completed

if TYPE_CHECKING:
    from pdctl.router.engines.instance import Instance
    from pdctl.router.engines.pairs import Pair


class FastDeploy(PdProtocol):
    """Adds `request_id` and `disaggregate_info`."""

    name = "fastdeploy"
    takes_aborts = True

    def mismatch(self, prefill: "Instance", decode: "Instance") -> str | None:
        """Equal tensor parallelism or 1 on decode, and a transfer protocol that reaches from one to the other."""
        p, d = prefill.registration, decode.registration
        if d.tp_size not in (1, p.tp_size):
            return f"{decode.name} has tp_size {d.tp_size}, {prefill.name} has {p.tp_size}: decode needs the same or 1"
        if _network(prefill, decode) is not None or _same_memory(prefill, decode):
            return None
        return (
            f"{prefill.name} and {decode.name} have no transfer protocol in common that reaches from one to the other"
        )

    def describe(self, prefill: "Instance", decode: "Instance") -> bytes:
        """`disaggregate_info`."""
        p, d = prefill.registration, decode.registration
        info = {
            "prefill_ip": p.host_ip,
            "prefill_port": p.port,
            "decode_ip": d.host_ip,
            "decode_port": d.port,
            "prefill_connector_port": p.connector_port,
            "decode_connector_port": d.connector_port,
            "decode_device_ids": d.device_ids,
            "decode_rdma_ports": d.rdma_ports,
            "transfer_protocol": "ipc" if _same_memory(prefill, decode) else _network(prefill, decode),
            "decode_tp_size": d.tp_size,
        }
        return b'"disaggregate_info":' + msgspec.json.encode(info)

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """One body for both legs."""
        both = completed(body, b"%b,%b" % (_identity(request_id), pair.info))
        return Bodies(both, both)

    def local(self, body: Body, request_id: str, resume: bytes) -> bytes:
        """The request's id only."""
        return completed(body, _identity(request_id))


class Builtin(FastDeploy):
    """Adds what makes a stream resumable, and lets a decode engine prefill."""

    name = "builtin"
    resumable = True

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """One body for both legs."""
        both = completed(body, b"%b,%b" % (_resumable(body, request_id, resume), pair.info))
        return Bodies(both, both)

    def can_prefill(self, decode: "Instance") -> bool:
        """Those that say so."""
        return decode.registration.prefill_on_decode

    def local(self, body: Body, request_id: str, resume: bytes) -> bytes:
        """Tells the decode that there is no prefill."""
        return completed(body, _resumable(body, request_id, resume) + b',"prefill_on_decode":true')


def _identity(request_id: str) -> bytes:
    return b'"request_id":%b' % msgspec.json.encode(request_id)


def _resumable(body: Body, request_id: str, resume: bytes) -> bytes:
    added = _identity(request_id)
    if body.stream:
        added += b',"return_token_ids":true'
    return b'%b,"resume":%b' % (added, resume) if resume else added


def _same_memory(prefill: "Instance", decode: "Instance") -> bool:
    p, d = prefill.registration, decode.registration
    both = "ipc" in p.transfer_protocol and "ipc" in d.transfer_protocol
    return both and p.host_ip == d.host_ip and p.tp_size == d.tp_size


def _network(prefill: "Instance", decode: "Instance") -> str | None:
    """What both have that reaches from host to host; an engine that lists nothing leaves it open."""
    lists = [r.transfer_protocol for r in (prefill.registration, decode.registration) if r.transfer_protocol]
    return next((name for name in ("rdma", "tcp") if all(name in each for each in lists)), None)
