"""What the parts of KV transfer share: the transport, the core as they see it, identities, limits, counters."""

import concurrent.futures
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from engine.scheduler.handoff import Reservation
from engine.scheduler.request import Request
from engine.transfer.blocks import Fit, Shard


class Peer(NamedTuple):
    """Where a decode engine takes KV handshakes: its host and pd-comm port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What an engine tells its peers about itself."""

    engine_id: str  # "host:port" of its API, as it registers with the router
    compat: str  # compat_hash() of its model
    layout: Mapping[str, Any]  # KVLayout.describe() of its model
    shard: Shard  # what its pool holds
    token: str | None = None  # the deployment's; None: peers are not asked for one


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """How long and how many. Seconds, but for the last two."""

    connect_s: float = 5.0  # TCP connection, handshake, memory mapped
    reserve_s: float = 300.0  # decode: a place and free blocks for a prompt
    join_s: float = 30.0  # decode: one leg of a request after the other: the router's, or prefill's reservation
    deliver_s: float = 600.0  # a request's KV, from its reservation to done
    ping_s: float = 2.0
    silence_s: float = 10.0  # a connection on which nothing came, or that did not come, for so long is lost
    connections: int = 256  # decode: prefill engines connected
    transfers: int = 4096  # decode: reservations of one prefill engine, and requests that wait for theirs


class Pushed(NamedTuple):
    """One push: its size, and the time that the copy took."""

    bytes: int
    seconds: float


class Target(NamedTuple):
    """A decode engine's pool as a prefill engine is to write it."""

    host: str  # where the decode engine is reached
    num_blocks: int
    fit: Fit


class Computed(Protocol):
    """Kernels that still run when their blocks are handed to a transport, as a torch.cuda.Event tells of them."""

    def synchronize(self) -> None:
        """Block until they have ended."""
        ...


class Writer(Protocol):
    """Prefill's side of a transport: writes blocks of its pool into one decode engine's pool."""

    @property
    def failed(self) -> bool:
        """Whether a push has failed: what had been sent of it may land until the inlet has been drained."""
        ...

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        """Copy block source[i] here to block target[i] there, as far as the pools fit, when `after` has ended.

        Pushes happen in the order of the calls. When it has returned, all bytes are there. When it raises, cancellation
        included, no byte of it can be written any more, unless the writer has failed, which it stays. Raises
        TransferError.
        """
        ...

    async def close(self) -> None:
        """Wait for the pushes in flight, let go of the memory, then let the decode engine know that nobody writes."""
        ...


class Inlet(Protocol):
    """Decode's side of a transport: lets one prefill engine write into the pool."""

    offer: bytes  # travels in the welcome; what Transport.connect needs

    async def drained(self) -> None:
        """Admit no writer from now on; return when none is left, the writer's death included."""
        ...

    def close(self) -> None:
        """Let go of everything. The caller knows that no granted block is left to be written."""
        ...


class Transport(Protocol):
    """A way to move KV blocks between two engines' pools. One object per engine."""

    name: str  # on the wire and in metrics

    async def start(self) -> None:
        """Get ready, before the first inlet or connection. TransferError: it is not usable here, and why."""
        ...

    def open_inlet(self) -> Inlet:
        """Make the way in for one prefill engine. Called in the event loop."""
        ...

    async def connect(self, offer: bytes, target: Target) -> Writer:
        """Reach the pool behind a decode engine's offer. Raises TransferError with the reason."""
        ...

    async def close(self) -> None:
        """Let go of everything. No inlet and no writer is left."""
        ...


class PrefillCore(Protocol):
    """What sending KV needs of the engine core; every method may be called from any thread."""

    def check(self, request: Request) -> None:
        """Raise RequestError where the request can never be computed."""
        ...

    def submit(self, request: Request, *, hold: bool = False) -> None:
        """Compute the prompt; with hold, its blocks stay owned until release()."""
        ...

    def abort(self, request_id: str) -> None:
        """Stop computing."""
        ...

    def release(self, request_id: str) -> None:
        """Nobody reads the request's blocks any more."""
        ...


class DecodeCore(Protocol):
    """What receiving KV needs of the engine core; every method may be called from any thread."""

    def check(self, request: Request) -> None:
        """Raise RequestError where the request can never be computed."""
        ...

    def reserve(self, request_id: str, prompt: list[int]) -> concurrent.futures.Future[Reservation]:
        """Reserve blocks for the prompt. The future fails with RequestError; cancelling it gives up the place."""
        ...

    def start_decode(self, request: Request, reservation: Reservation, first_tokens: list[int]) -> None:
        """Go on from a prompt whose KV is in the reserved blocks."""
        ...

    def cancel_reservation(self, reservation: Reservation) -> None:
        """Give the blocks back. No writer may be left."""
        ...
