"""What pdctl and the two measuring processes (engine/transfer/measure/) say to each other, a line of JSON each."""

import msgspec


class TargetOrders(msgspec.Struct, frozen=True):
    """What the target is told on its stdin."""

    host: str  # to listen on


class Listening(msgspec.Struct, frozen=True):
    """The target's answer: where the source gets in, and with which key."""

    port: int
    key: bytes


class SourceOrders(msgspec.Struct, frozen=True):
    """What the source is told on its stdin."""

    host: str  # where the target is
    port: int
    key: bytes
    transports: list[str]
    block_sizes: list[int]  # bytes, multiples of UNIT_BYTES in engine/transfer/measure/blocks.py
    in_flight: list[int]  # blocks in a push
    seconds: float  # of a cell


class Link(msgspec.Struct, frozen=True):
    """What a transport could be as fast as."""

    name: str
    gigabytes_s: float | None = None  # None: not known, or no limit of its own


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

    @property
    def gigabytes_s(self) -> float:
        """10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9


class Unusable(msgspec.Struct, frozen=True, tag="unusable", tag_field="event"):
    """From the source: the two cannot use that transport, and why."""

    transport: str
    reason: str


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """From the source: that transport broke down, or brought wrong bytes; no more cells of it."""

    transport: str
    reason: str


Event = Links | Cell | Unusable | Failed
