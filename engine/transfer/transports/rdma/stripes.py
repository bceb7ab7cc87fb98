"""How a push is cut into messages and shared out over lanes. Needs no pyverbs."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from engine.transfer.blocks import Copy

_LARGEST = 4 << 20  # bytes of a message: more gains nothing, and less can be sent again over another NIC
_WORTH_SPLITTING = 256 << 10


class Delivery:
    """One push on its way."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # the seconds that it took
        self.stripes = 0  # not finished


@dataclass(eq=False, slots=True)
class Stripe:
    """What one lane carries of a push. Its last message brings the number as immediate data."""

    number: int
    delivery: Delivery
    messages: list[Copy] = field(default_factory=list)
    sent: bool = False  # this side's NIC needs the source no more
    acknowledged: bool = False  # the other side has seen the number, and so everything before it


class Carrier(Protocol):
    """What stripes are shared out to."""

    pending: int  # bytes that it has to carry yet


_C = TypeVar("_C", bound=Carrier)


def messages_of(runs: Sequence[Copy], lanes: int) -> list[Copy]:
    """Cut runs into messages, small enough for each of the lanes to have a share."""
    total = sum(run.nbytes for run in runs)
    most = min(_LARGEST, max(_WORTH_SPLITTING, -(-total // lanes)))
    return [piece for run in runs for piece in _pieces(run, most)]


def share_out(messages: Iterable[Copy], lanes: Sequence[_C]) -> list[tuple[_C, list[Copy]]]:
    """Give each message to the lane that has least to carry, so that a slow one gets less; only lanes with a share."""
    shares: list[tuple[_C, list[Copy]]] = [(lane, []) for lane in lanes]
    loads = [lane.pending for lane in lanes]
    for message in messages:
        least = loads.index(min(loads))
        shares[least][1].append(message)
        loads[least] += message.nbytes
    return [(lane, share) for lane, share in shares if share]


def _pieces(run: Copy, most: int) -> Iterator[Copy]:
    for begin in range(0, run.nbytes, most):
        yield Copy(run.source + begin, run.target + begin, min(most, run.nbytes - begin))


class Signaled(NamedTuple):
    """A posted message that makes a completion, which also stands for those before it."""

    place: int
    nbytes: int  # since the one before
    stripe: Stripe | None  # that ends with it
