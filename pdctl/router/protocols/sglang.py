"""SGLang: both legs at once; they find each other in a room of the prefill's bootstrap server.

Protocol: what sglang 0.5.23 reads (`bootstrap_host`, `bootstrap_port`, `bootstrap_room`).
"""

import random
from typing import TYPE_CHECKING

import msgspec

from pdctl.router.protocols.base import Bodies, PdProtocol
from pdctl.router.requests.body import Body, completed

if TYPE_CHECKING:
    from pdctl.router.engines.instance import Instance
    from pdctl.router.engines.pairs import Pair

_ROOMS = 63  # bits
_MOST_ROOMS = 1024  # in one body: a client may ask for any number; out of one room, engines make more themselves


class Sglang(PdProtocol):
    """A decode in SGLang's decode mode cannot prefill. Every attempt has a room of its own."""

    name = "sglang"
    stream_error = b"data: {'error'"  # Python's quoting, not JSON's

    def describe(self, prefill: "Instance", decode: "Instance") -> bytes:
        """Where the room is, for requests of one sequence."""
        return b'"bootstrap_host":%b,"bootstrap_port":%b' % _address(prefill)

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """One body for both legs. Several sequences need a room each."""
        count = body.sequences
        if not 1 < count <= _MOST_ROOMS or pair.prefill is None:
            both = completed(body, b'%b,"bootstrap_room":%d' % (pair.info, random.getrandbits(_ROOMS)))
            return Bodies(both, both)
        host, port = _address(pair.prefill)
        rooms = b",".join(b"%d" % random.getrandbits(_ROOMS) for _ in range(count))
        both = completed(
            body,
            b'"bootstrap_host":[%b],"bootstrap_port":[%b],"bootstrap_room":[%b]'
            % (b",".join([host] * count), b",".join([port] * count), rooms),
        )
        return Bodies(both, both)


def _address(prefill: "Instance") -> tuple[bytes, bytes]:
    registration = prefill.registration
    port = b"%d" % registration.bootstrap_port if registration.bootstrap_port else b"null"
    return msgspec.json.encode(registration.host_ip), port
