"""Decode's side: lets one prefill engine write into the pool."""

import asyncio
import logging
import socket
from functools import partial

import msgspec
from pyverbs.cq import WC, cqe_status_to_str
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.doorway import Doorway
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.landing import Landing
from engine.transfer.transports.rdma.nics import Nics
from engine.transfer.transports.rdma.queue_pairs import QueuePair
from engine.transfer.transports.rdma.wire import (
    ACK,
    CLOSE,
    CLOSED,
    FRAME,
    SPANS,
    Hello,
    LaneAnswer,
    LaneRequest,
    Offer,
    Spans,
    Welcome,
    receive,
    send,
)
from engine.transfer.waits import deadline

logger = logging.getLogger(__name__)

_RECEIVES = 64  # posted on each queue pair; a sender that finds none waits
_HELLO_S = 5.0


class RdmaInlet:
    """Takes the first guest at its door, connects queue pairs with it, and acknowledges the stripes that come."""

    def __init__(self, nics: Nics, doorway: Doorway) -> None:
        self._nics = nics
        self._doorway = doorway
        self._key = doorway.make_door(self._admit)
        self._pairs: list[QueuePair | None] = []  # by lane; None: it could not be made
        self._serving: asyncio.Task[None] | None = None
        self._landing = Landing(nics.memory, nics.nbytes, self._acknowledge)
        ports = [nic.port.address for nic in nics.all]
        self.offer = msgspec.msgpack.encode(Offer(doorway.port, self._key, nics.nbytes, ports))

    async def drained(self) -> None:
        """Admit no writer from now on, and cut off the one there is: nobody can write when this returns."""
        self._end()
        if self._serving is not None:
            await asyncio.wait({self._serving})
        await self._landing.closed()

    def close(self) -> None:
        """Let go of everything."""
        self._end()

    def _end(self) -> None:
        self._doorway.close_door(self._key)
        self._close_pairs()
        self._landing.close()
        if self._serving is not None:
            self._serving.cancel()

    def _close_pairs(self) -> None:
        for pair in self._pairs:
            if pair is not None:
                pair.close()

    def _admit(self, guest: socket.socket) -> None:
        self._doorway.close_door(self._key)
        self._serving = asyncio.create_task(self._serve(guest))

    async def _serve(self, guest: socket.socket) -> None:
        reader, self._stream = await asyncio.open_connection(sock=guest)
        try:
            async with deadline(_HELLO_S, "a prefill engine's RDMA hello"):
                hello = await receive(reader, Hello)
            answers = [self._answer(place, lane) for place, lane in enumerate(hello.lanes)]
            send(self._stream, Welcome(answers, self._landing.wants_spans))
            while True:
                what, place, number = FRAME.unpack(await reader.readexactly(FRAME.size))
                if what not in (CLOSE, SPANS) or place >= len(self._pairs):
                    raise TransferError("a prefill engine sent nonsense on its data connection")
                if what == CLOSE:
                    self._close_lane(place)
                else:
                    self._landing.told(place, number, (await receive(reader, Spans)).spans)
        except (EOFError, OSError):
            pass  # the writer's end
        except TransferError as error:
            logger.warning("RDMA: %s", error)
        finally:
            self._close_pairs()
            self._stream.close()

    def _answer(self, place: int, lane: LaneRequest) -> LaneAnswer:
        self._pairs.append(None)
        if lane.target >= len(self._nics.all):
            return LaneAnswer(error=f"there is no NIC {lane.target}")
        nic = self._nics.all[lane.target]
        try:
            pair = self._pairs[place] = QueuePair(nic.port, nic.region, receives=_RECEIVES)
            pair.completions.watch(partial(self._completed, place), partial(self._failed, place))
            for _ in range(_RECEIVES):
                pair.post_receive()
            pair.connect(lane.source, lane.number, lane.psn, self._nics.timeout)
        except PyverbsError as error:
            return LaneAnswer(error=f"{nic.port.address}: {error}")
        return LaneAnswer(pair.number, pair.psn, nic.region.address, nic.region.rkey)

    def _completed(self, place: int, completions: list[WC]) -> None:
        pair = self._pairs[place]
        assert pair is not None
        for completion in completions:
            if completion.status != enums.IBV_WC_SUCCESS:
                return self._failed(place, cqe_status_to_str(completion.status))
            pair.post_receive()
            self._landing.arrived(place, socket.ntohl(completion.imm_data))
        return None

    def _acknowledge(self, place: int, number: int) -> None:
        self._stream.write(FRAME.pack(ACK, place, number))

    def _failed(self, place: int, reason: str) -> None:
        logger.warning("RDMA: lane %d of a prefill engine failed: %s", place, reason)
        self._close_lane(place)

    def _close_lane(self, place: int) -> None:
        pair = self._pairs[place]
        if pair is not None:
            pair.close()
        self._landing.forget(place)
        self._stream.write(FRAME.pack(CLOSED, place, 0))
