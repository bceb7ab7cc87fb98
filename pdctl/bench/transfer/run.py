"""Starts a target and a source, and passes on what the source finds."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from pdctl.bench.transfer.child import Child, running
from pdctl.bench.transfer.messages import Cell, Event, Listening, SourceOrders, TargetOrders
from pdctl.bench.transfer.sweep import Sweep, show_size
from pdctl.errors import PdctlError, ProcessDiedError, StepTimeoutError

MODULE = ("-P", "-m", "engine.transfer.measure")  # -P: a folder of that name here is not the engine
MEASURE = (sys.executable, *MODULE)
LOOPBACK = "127.0.0.1"
START_S = 180.0  # it imports torch, from a slow disk perhaps
STEP_S = 120.0  # beyond the seconds of a cell: large pools take their time, and a stalled transport has its own limits
END_S = 15.0

_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Side(NamedTuple):
    """Where one of the two processes runs."""

    address: str = LOOPBACK  # at which the other reaches it
    # A command line of this machine that runs its part; None: it is a process of this machine.
    command: Callable[[str], list[str]] | None = None

    def argv(self, part: str) -> list[str]:
        """The command line of the process that has this part."""
        return [*MEASURE, part] if self.command is None else self.command(part)


HERE = Side()


async def run_sweep(
    sweep: Sweep,
    environment: Mapping[str, str],
    on_event: Callable[[Event], None],
    *,
    target: Side = HERE,
    source: Side = HERE,
) -> None:
    """Measure between two processes; those of this machine get `environment` beside its own.

    Raises ProcessDiedError, StepTimeoutError.
    """
    variables = {**os.environ, **environment}
    async with (
        running("target", target.argv("target"), variables) as there,
        running("source", source.argv("source"), variables) as here,
    ):
        try:
            await _introduce(sweep, there, here, target.address)
            await _follow(sweep, here, on_event)
            await _both_end(there, here)
        except PdctlError as error:
            error.detail = "\n".join(f"{child.name}: {line}" for child in (there, here) for line in child.log)
            raise


async def _introduce(sweep: Sweep, target: Child, source: Child, address: str) -> None:
    target.tell(TargetOrders(address))
    line = await _line(target, START_S, "the target to listen")
    if not line:
        raise _death(target, await target.ends(END_S))
    listening = msgspec.json.decode(line, type=Listening)
    source.tell(
        SourceOrders(
            address,
            listening.port,
            listening.key,
            list(sweep.transports),
            list(sweep.block_sizes),
            list(sweep.in_flight),
            sweep.seconds,
        )
    )


async def _follow(sweep: Sweep, source: Child, on_event: Callable[[Event], None]) -> None:
    awaited = "the source to begin"
    while line := await _line(source, sweep.seconds + STEP_S, awaited):
        event = _events.decode(line)
        on_event(event)
        awaited = f"what the source measures {_after(event)}"


async def _both_end(target: Child, source: Child) -> None:
    """The source says nothing more. If something has happened to the target, what the source does follows from it."""
    of_target, of_source = await asyncio.gather(target.ends(END_S), source.ends(END_S))
    for child, status in ((target, of_target), (source, of_source)):
        if status:
            raise _death(child, status)
    for child, status in ((source, of_source), (target, of_target)):
        if status is None:
            raise StepTimeoutError(f"bench transfer: waited {END_S:g} s for the {child.name} to end")


async def _line(child: Child, timeout_s: float, awaited: str) -> bytes:
    try:
        return await child.line(timeout_s)
    except TimeoutError:
        raise StepTimeoutError(f"bench transfer: waited {timeout_s:g} s for {awaited}") from None


def _after(event: Event) -> str:
    match event:
        case Cell():
            return f"after {event.transport}, {event.in_flight} x {show_size(event.block_bytes)}"
        case _:
            return "next"


def _death(child: Child, status: int | None) -> ProcessDiedError:
    if status is None:
        return ProcessDiedError(f"bench transfer: the {child.name} closed its output")
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return ProcessDiedError(f"bench transfer: the {child.name} {how}")
