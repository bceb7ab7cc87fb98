"""Which prefill can work with which decode, and what a request to both says about them."""

import msgspec

from pdctl.router.instance import Instance
from pdctl.router.messages import DECODE_URL, PREFILL_URL


class Pair:
    """The engines of one request; mixed mode has no prefill."""

    __slots__ = ("decode", "headers", "info", "name", "prefill")

    def __init__(self, prefill: Instance | None, decode: Instance) -> None:
        self.prefill = prefill
        self.decode = decode
        self.name = f"{prefill.key} -> {decode.key}" if prefill else decode.key
        self.headers = b"%b: %b\r\n" % (DECODE_URL, decode.url.encode())
        self.info = b""  # disaggregate_info, as JSON
        if prefill is not None:
            self.headers = b"%b: %b\r\n%b" % (PREFILL_URL, prefill.url.encode(), self.headers)
            self.info = msgspec.json.encode(_disaggregate_info(prefill, decode))


def mismatch(prefill: Instance, decode: Instance) -> str | None:
    """Why these two cannot serve a request together; None if they can."""
    p, d = prefill.registration, decode.registration
    if d.tp_size not in (1, p.tp_size):
        return f"{decode.name} has tp_size {d.tp_size}, {prefill.name} has {p.tp_size}: decode needs the same or 1"
    # An engine that lists nothing leaves it open: rdma is then assumed, as other routers do.
    if not _same_memory(prefill, decode) and any(
        r.transfer_protocol and "rdma" not in r.transfer_protocol for r in (p, d)
    ):
        return (
            f"{prefill.name} and {decode.name} have no transfer protocol in common that reaches from one to the other"
        )
    return None


def _same_memory(prefill: Instance, decode: Instance) -> bool:
    p, d = prefill.registration, decode.registration
    both = "ipc" in p.transfer_protocol and "ipc" in d.transfer_protocol
    return both and p.host_ip == d.host_ip and p.tp_size == d.tp_size


def _disaggregate_info(prefill: Instance, decode: Instance) -> dict[str, object]:
    p, d = prefill.registration, decode.registration
    return {
        "prefill_ip": p.host_ip,
        "prefill_port": p.port,
        "decode_ip": d.host_ip,
        "decode_port": d.port,
        "prefill_connector_port": p.connector_port,
        "decode_connector_port": d.connector_port,
        "decode_device_ids": d.device_ids,
        "decode_rdma_ports": d.rdma_ports,
        "transfer_protocol": "ipc" if _same_memory(prefill, decode) else "rdma",
        "decode_tp_size": d.tp_size,
    }
