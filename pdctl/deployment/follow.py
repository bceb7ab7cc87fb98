"""Reading logs: what was written, then what is being written, without a gap or a line twice."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from time import time
from typing import Any

from pdctl.deployment.models import LogLine
from pdctl.errors import HostUnreachableError
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.host import Host, RecordedLine

AGENT_POLL_S = 0.2
RECONNECT_S = 2.0
_MAX_MERGED = 1000  # lines taken from the agents and not yet by the reader

NOTE = "pdctl"  # whose line it is that tells of lost ones, or of a host that is not reached

Lines = AsyncGenerator[LogLine, None]


class HostLogs:
    """The logs of processes on one host."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        run_id: str,
        processes: Sequence[str],
        tail: int,
        is_starting: Callable[[], bool],
    ) -> None:
        self._host = host
        self._folder = folder
        self._run_id = run_id
        self._processes = list(processes)
        self._tail = tail
        self._is_starting = is_starting
        self._client: AgentClient | None = None
        self._is_lost = False  # it was to be followed, and could not be reached
        self._seen: dict[str, float] = {}  # time of the last line given out, by process

    async def recorded(self, *, follow: bool) -> list[LogLine]:
        """The last lines of the run. To follow, subscribe first: no line may fall in between."""
        try:
            if follow:
                await self._subscribe()
            rows = await self._read()
        except HostUnreachableError as error:
            self._is_lost = follow
            return [LogLine(process=NOTE, time=time(), text=str(error))]
        return [self._take(row.process, row.time, row.text) for row in rows]

    async def new_lines(self) -> Lines:
        """Lines written after those recorded, until the agent ends. What carries them may break meanwhile."""
        if self._is_lost:
            for line in await self._missed():
                yield line
        while self._client is not None:
            try:
                async for line in self._lines_of(self._client):
                    yield line
            except AgentGoneError:
                for line in await self._missed():
                    yield line

    async def _lines_of(self, client: AgentClient) -> Lines:
        while True:
            event = await client.next_event()
            if event["event"] == "logs":
                for line in self._unseen(event):
                    yield line

    async def _missed(self) -> list[LogLine]:
        """Subscribe again, if the agent lives; what was written meanwhile."""
        await self.close()
        self._client = None
        while True:
            try:
                await self._subscribe()
                if self._client is None:
                    return []
                return self._new(await self._read())
            except HostUnreachableError:
                await asyncio.sleep(RECONNECT_S)  # nothing tells when a way is open again

    async def close(self) -> None:
        """Close the subscription."""
        if self._client is not None:
            await self._client.close()

    async def _read(self) -> list[RecordedLine]:
        return await self._host.read_logs(self._folder, self._processes, self._tail, self._run_id)

    async def _subscribe(self) -> None:
        while True:
            try:
                self._client = await self._host.connect(self._folder)
                await self._client.call("subscribe", logs=True, names=self._processes)
                return
            except AgentGoneError:
                if not self._is_starting():
                    return
            await asyncio.sleep(AGENT_POLL_S)  # an agent that starts announces itself by listening

    def _unseen(self, event: dict[str, Any]) -> list[LogLine]:
        lines = self._new([RecordedLine(*row) for row in event["lines"]])
        if event["lost"]:
            last = lines[-1].time if lines else 0.0
            lines.append(LogLine(process=NOTE, time=last, text=f"{event['lost']} lines came too fast to be shown"))
        return lines

    def _new(self, rows: Sequence[RecordedLine]) -> list[LogLine]:
        unseen = [row for row in rows if row.time > self._seen.get(row.process, 0.0)]
        return [self._take(row.process, row.time, row.text) for row in unseen]

    def _take(self, process: str, time: float, text: str) -> LogLine:
        self._seen[process] = time
        return LogLine(process=process, time=time, text=text)


async def merged(sources: Sequence[Lines]) -> Lines:
    """The lines of all sources as they come, until all have ended or one has failed."""
    queue: asyncio.Queue[LogLine | Exception | None] = asyncio.Queue(_MAX_MERGED)
    tasks = [asyncio.create_task(_pump(source, queue)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: Lines, queue: asyncio.Queue[LogLine | Exception | None]) -> None:
    end: Exception | None = None
    try:
        async with aclosing(source):
            async for line in source:
                await queue.put(line)
    except Exception as error:  # the reader raises it
        end = error
    await queue.put(end)
