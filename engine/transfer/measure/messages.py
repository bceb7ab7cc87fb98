"""What the two processes say: to pdctl, a line of JSON each, and to each other.

pdctl/bench/transfer/messages.py has the first half too.
"""

import msgspec


class TargetOrders(msgspec.Struct, frozen=True):
    """What the target is told on its stdin."""

    host: str  # to listen on


class Listening(msgspec.Struct, frozen=True):
    """The target's answer on its stdout: where the source gets in, and with which key."""

    port: int
    key: bytes


class SourceOrders(msgspec.Struct, frozen=True):
    """What the source is told on its stdin."""

    host: str  # where the target is
    port: int
    key: bytes
    transports: list[str]
    block_sizes: list[int]  # bytes, multiples of UNIT_BYTES in blocks.py
    in_flight: list[int]  # blocks in a push
    seconds: float  # of a cell


class Link(msgspec.Struct, frozen=True):
    """What a transport could be as fast as."""

    name: str
    gigabytes_s: float | None = None


class Links(msgspec.Struct, frozen=True, tag="links", tag_field="event"):
    """From the source, first: what it knows of what the transports go over, by transport."""

    links: dict[str, Link]


class Cell(msgspec.Struct, frozen=True, tag="cell", tag_field="event"):
    """From the source: one cell of the sweep is measured, and its bytes were right."""

    transport: str
    block_bytes: int
    in_flight: int
    bytes: int
    seconds: float


class Unusable(msgspec.Struct, frozen=True, tag="unusable", tag_field="event"):
    """From the source: the two cannot use that transport, and why."""

    transport: str
    reason: str


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """From the source: that transport broke down, or brought wrong bytes; no more cells of it."""

    transport: str
    reason: str


Event = Links | Cell | Unusable | Failed


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Source to target: make a pool and these transports."""

    unit_bytes: int
    units: int
    transports: list[str]


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The transports that cannot be used there, and why."""

    problems: dict[str, str]


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Source to target: open an inlet."""

    transport: str


class Offered(msgspec.Struct, frozen=True, tag=True):
    """What Transport.connect() needs."""

    offer: bytes


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Source to target: fill these blocks with zeros."""

    block_bytes: int
    blocks: list[int]


class Sum(msgspec.Struct, frozen=True, tag=True):
    """Source to target: the checksum of these blocks, in order."""

    block_bytes: int
    blocks: list[int]


class Summed(msgspec.Struct, frozen=True, tag=True):
    """The checksum."""

    checksum: int


class Dismiss(msgspec.Struct, frozen=True, tag=True):
    """Source to target: my writer is closed: close the inlet."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done."""


Request = Prepare | Admit | Clear | Sum | Dismiss
Reply = Prepared | Offered | Summed | Done
