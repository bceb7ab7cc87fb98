"""What source and target say to each other; what they say to pdctl is in pdctl/bench/transfer/messages.py."""

import msgspec


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
