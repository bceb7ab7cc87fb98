"""What travels on a stream.

From prefill: frames. A frame is a head, its spans of decode's pool, then the bytes of these spans. From decode: the
number of each push all of whose bytes are in the pool. Pushes count from 1, over all streams of a pair.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.errors import TransferError
from engine.transfer.blocks import Copy

FRAME_BYTES = 2 << 20  # at most; measured over loopback: half of that is slower
FRAME_SPANS = 512  # at most; a system call takes 1,024 (IOV_MAX)

HEAD = struct.Struct("!QQI")
ACK = struct.Struct("!Q")
SPAN_BYTES = struct.calcsize("!QQ")


class Head(NamedTuple):
    """How a frame begins."""

    push: int
    push_bytes: int  # of all its frames, on whichever streams they travel
    spans: int


class Span(NamedTuple):
    """A run of bytes in a pool."""

    at: int
    nbytes: int


def cut(runs: Sequence[Copy]) -> Iterator[list[Copy]]:
    """The same copies, in parts that are each fit for a frame."""
    part: list[Copy] = []
    room = FRAME_BYTES
    for run in runs:
        source, target, left = run
        while left:
            nbytes = min(left, room)
            part.append(Copy(source, target, nbytes))
            source, target, left, room = source + nbytes, target + nbytes, left - nbytes, room - nbytes
            if not room or len(part) == FRAME_SPANS:
                yield part
                part, room = [], FRAME_BYTES
    if part:
        yield part


def encode_head(push: int, push_bytes: int, part: Sequence[Copy]) -> bytes:
    """What a frame begins with, its spans included."""
    places = [number for run in part for number in (run.target, run.nbytes)]
    return HEAD.pack(push, push_bytes, len(part)) + struct.pack(f"!{len(places)}Q", *places)


def decode_head(data: bytes | bytearray) -> Head:
    """Raises TransferError where it cannot be one."""
    head = Head(*HEAD.unpack(data))
    if not 0 < head.spans <= FRAME_SPANS:
        raise TransferError(f"a frame of push {head.push} says that it has {head.spans} spans")
    return head


def decode_spans(data: bytes | bytearray, pool_bytes: int) -> list[Span]:
    """Raises TransferError where one is not in the pool, or they are too large for a frame."""
    numbers = struct.unpack(f"!{len(data) // 8}Q", data)
    spans = [Span(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    for span in spans:
        if not 0 < span.nbytes <= FRAME_BYTES or span.at + span.nbytes > pool_bytes:
            raise TransferError(f"{span.nbytes} bytes at {span.at} are not in the pool, which has {pool_bytes}")
    if sum(span.nbytes for span in spans) > FRAME_BYTES:
        raise TransferError(f"a frame says that it has more than {FRAME_BYTES} bytes")
    return spans
