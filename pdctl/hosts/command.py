"""Running a program of this machine to its end."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
    """Run a program; raises TimeoutError when it takes longer. It never outlives the call."""
    if isinstance(feed.content, Path):
        with feed.content.open("rb") as file:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=file, stdout=PIPE, stderr=PIPE, env=env, limit=_LINE_BYTES
            )
    else:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, limit=_LINE_BYTES
        )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await _communicate(process, feed)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace").strip())


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
