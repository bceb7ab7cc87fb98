"""Engines in processes of their own, for tests that stop and kill them. They run on uvloop, as the engine may."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import uvloop
from transfer_harness import LAYOUT, LIMITS, DecodeCoreDouble, TransferLimits, decode_side, prefill_side, request

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Peer, Transport
from engine.transfer.blocks import Copy
from engine.transfer.doorway import Doorway
from engine.transfer.receiver import DecodeTransfer
from engine.transfer.transports import shm
from engine.transfer.transports.usable import start_usable

FORKSERVER = multiprocessing.get_context("forkserver")
# The test folder is not on the fork server's path, and importing torch is what takes long.
FORKSERVER.set_forkserver_preload(["uvloop", "engine.transfer.transports.usable", "engine.transfer.sender"])
BLOCKS = 64
FLOOD_BLOCKS = 512


class EngineProcess:
    """A process, and the pipe over which it is told what to do."""

    def __init__(self, main: Any, *args: Any) -> None:
        self.pipe, theirs = FORKSERVER.Pipe()
        self._process = FORKSERVER.Process(target=main, args=(theirs, *args))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, *words: Any) -> None:
        """Send a command."""
        self.pipe.send(words)

    async def hears(self) -> Any:
        """Wait for an answer."""
        return await asyncio.to_thread(self._hear)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._process.join(10)
        self.pipe.close()

    def _hear(self) -> Any:
        if not self.pipe.poll(20):
            raise TimeoutError("the other process has said nothing for 20 s")
        return self.pipe.recv()


@asynccontextmanager
async def decode_over(
    transport: str, pool: KVPool, limits: TransferLimits = LIMITS
) -> AsyncIterator[tuple[DecodeTransfer, DecodeCoreDouble, Peer]]:
    """A decode engine in this process that has one transport."""
    async with (
        started(transport, pool, door=True) as transports,
        decode_side(pool, limits=limits, transports=transports) as decode,
    ):
        yield decode


@asynccontextmanager
async def started(transport: str, pool: KVPool, *, door: bool = False) -> AsyncIterator[list[Transport]]:
    """That transport for a pool; with a door, as decode has it."""
    doorway = Doorway()
    if door:
        await doorway.open("127.0.0.1", 0)
    transports = await start_usable([transport], pool, doorway)
    try:
        yield transports
    finally:
        for each in transports:
            await each.close()
        await doorway.close()


@asynccontextmanager
async def prefill_process(
    peer: Peer, *, limits: TransferLimits = LIMITS, writes_until: Any = None
) -> AsyncIterator[EngineProcess]:
    """A prefill engine. Told (request id, prompt, chunk), it delivers, and says what came of it.

    With writes_until, an Event, each push writes ones over and over until that is set.
    """
    engine = EngineProcess(_prefill_main, peer, limits, writes_until)
    try:
        yield engine
    finally:
        engine.end()


@asynccontextmanager
async def flooding_prefill_process(peer: Peer, transport: str, limits: TransferLimits) -> AsyncIterator[EngineProcess]:
    """A prefill engine that is connected, is told numbers, and delivers each `flood_prompt`, several at once."""
    engine = EngineProcess(_flood_main, peer, transport, limits)
    try:
        assert await engine.hears() == "connected"
        yield engine
    finally:
        engine.end()


@asynccontextmanager
async def decode_process(transport: str = "ipc") -> AsyncIterator[tuple[EngineProcess, Peer]]:
    """A decode engine that grants what it is asked for."""
    engine = EngineProcess(_decode_main, transport)
    try:
        yield engine, await engine.hears()
    finally:
        engine.end()


def _prefill_main(pipe: Connection, peer: Peer, limits: TransferLimits, writes_until: Any) -> None:
    if writes_until is not None:
        shm._copy = _endless_copy(pipe, writes_until)
    uvloop.run(_prefill(pipe, peer, limits))


async def _prefill(pipe: Connection, peer: Peer, limits: TransferLimits) -> None:
    async with prefill_side(KVPool(LAYOUT, BLOCKS), limits=limits) as (prefill, core):
        while True:
            name, prompt, chunk = await asyncio.to_thread(pipe.recv)
            delivered = asyncio.create_task(prefill.deliver(request(name, prompt), peer))
            await core.compute_all(await core.submitted.get(), chunk=chunk)
            try:
                pipe.send(await delivered)
            except TransferError as error:
                pipe.send(str(error))


def _endless_copy(pipe: Connection, until: Any) -> Any:
    def copy(runs: list[Copy], source: object, target: np.ndarray[Any, Any], after: object) -> float:
        pipe.send("writing")
        while not until.is_set():
            for run in runs:
                target[run.target : run.target + run.nbytes] = 1
        return 0.0

    return copy


def flood_prompt(number: int) -> list[int]:
    """A prompt of 8 to 200 tokens that no other number has."""
    return [number * 7 + 1 + i % 5 for i in range(8 + number * 37 % 193)]


def _flood_main(pipe: Connection, peer: Peer, transport: str, limits: TransferLimits) -> None:
    uvloop.run(_flood(pipe, peer, transport, limits))


async def _flood(pipe: Connection, peer: Peer, transport: str, limits: TransferLimits) -> None:
    pool = KVPool(LAYOUT, FLOOD_BLOCKS)
    async with (
        started(transport, pool) as transports,
        prefill_side(pool, limits=limits, transports=transports) as (prefill, core),
    ):
        await prefill._link(peer)
        pipe.send("connected")

        async def compute() -> None:
            while True:
                await core.compute_all(await core.submitted.get(), chunk=48)

        async def deliver(number: int) -> None:
            with contextlib.suppress(TransferError):
                await prefill.deliver(request(f"r{number}", flood_prompt(number)), peer)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(compute())
            while True:
                (number,) = await asyncio.to_thread(pipe.recv)
                tasks.create_task(deliver(number))


def _decode_main(pipe: Connection, transport: str) -> None:
    uvloop.run(_decode(pipe, transport))


async def _decode(pipe: Connection, transport: str) -> None:
    async with decode_over(transport, KVPool(LAYOUT, BLOCKS, shared=True)) as (_, _, peer):
        pipe.send(peer)
        await asyncio.to_thread(pipe.recv)
