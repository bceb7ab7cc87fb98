"""Prefill's side of connecting: which NICs go together, and their queue pairs."""

import asyncio
import logging
from contextlib import ExitStack

import msgspec
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.base import Target
from engine.transfer.doorway import knock
from engine.transfer.transports.rdma.addresses import PortAddress, pair_ports
from engine.transfer.transports.rdma.lanes import DEPTH, Lane
from engine.transfer.transports.rdma.nics import Nics
from engine.transfer.transports.rdma.queue_pairs import QueuePair
from engine.transfer.transports.rdma.wire import Hello, LaneAnswer, LaneRequest, Offer, Welcome, receive, send
from engine.transfer.transports.rdma.writer import RdmaWriter

logger = logging.getLogger(__name__)


async def dial(nics: Nics, offer: bytes, target: Target) -> RdmaWriter:
    """Connect with the pool behind an offer. Raises TransferError with the reason; the caller has a deadline."""
    terms = _read(offer, target)
    places = pair_ports([nic.port.address for nic in nics.all], terms.ports)
    with ExitStack() as undo:
        pairs = [_make(nics, ours, undo) for ours, _ in places]
        reader, stream = await _open_connection(target.host, terms, undo)
        requests = [
            LaneRequest(nics.all[ours].port.address, theirs, pair.number, pair.psn)
            for (ours, theirs), pair in zip(places, pairs, strict=True)
        ]
        welcome = await _exchange(reader, stream, requests)
        lanes = [
            _lane(nics, request, pair, terms.ports[request.target], answer)
            for request, pair, answer in zip(requests, pairs, welcome.lanes, strict=True)
        ]
        undo.pop_all()
    writer = RdmaWriter(lanes, reader, stream, target.fit, bounce=nics.memory.bounce, tells_spans=welcome.wants_spans)
    try:
        await writer.probe()
    except BaseException:
        await writer.close()
        raise
    return writer


def _read(offer: bytes, target: Target) -> Offer:
    try:
        terms = msgspec.msgpack.decode(offer, type=Offer)
    except msgspec.DecodeError as error:
        raise TransferError(f"its RDMA offer is malformed: {error}") from None
    needed = target.num_blocks * target.fit.target_stride
    if terms.nbytes < needed:
        raise TransferError(f"its pool has {terms.nbytes} bytes, less than {target.num_blocks} blocks, {needed} bytes")
    return terms


def _make(nics: Nics, place: int, undo: ExitStack) -> QueuePair:
    nic = nics.all[place]
    try:
        pair = QueuePair(nic.port, nic.region, sends=DEPTH)
    except PyverbsError as error:
        raise TransferError(f"{nic.port.address}: {error}") from None
    undo.callback(pair.close)
    return pair


async def _open_connection(
    host: str, terms: Offer, undo: ExitStack
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        sock = await knock(host, terms.port, terms.key)
    except OSError as error:
        raise TransferError(f"no data connection to {host}:{terms.port}: {error}") from None
    reader, stream = await asyncio.open_connection(sock=sock)
    undo.callback(stream.close)
    return reader, stream


async def _exchange(reader: asyncio.StreamReader, stream: asyncio.StreamWriter, requests: list[LaneRequest]) -> Welcome:
    send(stream, Hello(requests))
    try:
        welcome = await receive(reader, Welcome)
    except (EOFError, OSError) as error:
        raise TransferError(f"the decode engine closed its data connection: {error}") from None
    if len(welcome.lanes) != len(requests):
        raise TransferError(f"decode has {len(welcome.lanes)} answers to {len(requests)} RDMA lanes")
    return welcome


def _lane(nics: Nics, request: LaneRequest, pair: QueuePair, peer: PortAddress, answer: LaneAnswer) -> Lane:
    """A lane; one that cannot be connected has failed, but keeps its place."""
    lane = Lane(f"{request.source} to {peer}", pair, answer.address, answer.rkey)
    try:
        if answer.error:
            raise TransferError(answer.error)
        pair.connect(peer, answer.number, answer.psn, nics.timeout)
    except (TransferError, PyverbsError) as error:
        logger.warning("RDMA: %s is not connected: %s", lane.label, error)
        lane.failure = str(error)
        lane.close()
    return lane
