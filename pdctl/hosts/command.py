"""Running a program of this machine to its end."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

_LINE_BYTES = 1024 * 1024


class Finished(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


class Feed(NamedTuple):
    """What a program is given on stdin, and who hears the lines that it writes, as they come."""

    content: bytes | Path = b""
    on_line: Callable[[str], None] | None = None


NOTHING = Feed()


async def run_command(
    argv: Sequence[str], *, timeout_s: float, feed: Feed = NOTHING, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a program; raises TimeoutError when it takes longer. Neither it nor what it starts outlives the call."""
    if isinstance(feed.content, Path):
        with feed.content.open("rb") as file:
            process = await start_program(argv, stdin=file, env=env)
    else:
        process = await start_program(argv, env=env)
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await _communicate(process, feed)
    finally:
        if process.returncode is None:
            await kill_program(process)
    return Finished(process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace").strip())


async def start_program(
    argv: Sequence[str], *, stdin: int | IO[bytes] = PIPE, env: Mapping[str, str] | None = None
) -> Process:
    """Start a program in a session of its own: Ctrl-C in our terminal is for us to handle."""
    return await asyncio.create_subprocess_exec(
        *argv, stdin=stdin, stdout=PIPE, stderr=PIPE, env=env, limit=_LINE_BYTES, start_new_session=True
    )


async def kill_program(process: Process) -> None:
    """Kill a program that was not waited for yet, with what it has started, as ssh does for a jump host.

    While any of these lived, its output would not end, and the wait for it neither.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _communicate(process: Process, feed: Feed) -> tuple[bytes, bytes]:
    content = feed.content if isinstance(feed.content, bytes) else None
    if feed.on_line is None:
        return await process.communicate(content)
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdin is not None:
        process.stdin.write(content or b"")
        process.stdin.close()
    errors = asyncio.create_task(process.stderr.read())
    try:
        async for line in process.stdout:
            feed.on_line(line.decode(errors="replace").rstrip())
        said = await errors
        await process.wait()
        return b"", said
    finally:
        errors.cancel()
