"""A measuring process of this machine."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

_LOG_LINES = 20
_END_S = 3.0  # to end after SIGTERM
_LINE_BYTES = 1 << 20


class Child:
    """Says lines on stdout, is told lines on stdin, and logs on stderr."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.log: deque[str] = deque(maxlen=_LOG_LINES)  # the last lines of it
        self._process = process
        self._ended = asyncio.create_task(self._follow())

    def tell(self, orders: msgspec.Struct) -> None:
        """Send it a line; its stdin stays open, as its end would end it."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(orders) + b"\n")

    async def line(self, timeout_s: float) -> bytes:
        """Wait for its next line; empty: it has closed its stdout. Raises TimeoutError."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            return await self._process.stdout.readline()

    async def ends(self, timeout_s: float) -> int | None:
        """Wait for its end; return its exit status, None if it lives on."""
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return self._process.returncode if self._ended.done() else None

    async def end(self) -> None:
        """End it: by SIGTERM, in the end by SIGKILL."""
        if self._process.returncode is None:
            self._process.terminate()
        if await self.ends(_END_S) is None:
            self._process.kill()
            await self._ended

    async def _follow(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
        await self._process.wait()


@asynccontextmanager
async def running(name: str, argv: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Child]:
    """A child that does not outlive the block. Ctrl-C reaches pdctl only, which ends it."""
    pipe = asyncio.subprocess.PIPE
    child = Child(
        name,
        await asyncio.create_subprocess_exec(
            *argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            limit=_LINE_BYTES,
            start_new_session=True,
        ),
    )
    try:
        yield child
    finally:
        await child.end()
