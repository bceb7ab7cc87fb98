"""Which prefill can work with which decode, and what a request to both says about them."""

from pdctl.router.engines.instance import Instance
from pdctl.router.messages import DECODE_URL, PREFILL_URL


class Pair:
    """The engines of one request. No prefill: the other one computes the prompt itself."""

    __slots__ = ("decode", "headers", "info", "name", "prefill", "protocol")

    def __init__(self, prefill: Instance | None, decode: Instance) -> None:
        self.prefill = prefill
        self.decode = decode
        self.protocol = decode.protocol
        self.name = f"{prefill.key} -> {decode.key}" if prefill else decode.key
        self.headers = b"%b: %b\r\n" % (DECODE_URL, decode.url.encode())
        self.info = b""  # what the protocol says of the pair
        if prefill is not None:
            self.headers = b"%b: %b\r\n%b" % (PREFILL_URL, prefill.url.encode(), self.headers)
            self.info = self.protocol.describe(prefill, decode)


def mismatch(prefill: Instance, decode: Instance) -> str | None:
    """Why these two cannot serve a request together; None if they can."""
    p, d = prefill.registration, decode.registration
    if p.protocol != d.protocol:
        return f"{prefill.name} speaks {p.protocol}, {decode.name} speaks {d.protocol}"
    if p.model != d.model and p.model and d.model:
        return f"{prefill.name} serves {p.model}, {decode.name} serves {d.model}"
    return prefill.protocol.mismatch(prefill, decode)
