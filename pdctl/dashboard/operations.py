"""What the user wants done with processes, done while the view goes on; the notes say what becomes of it."""

import asyncio
from collections.abc import Callable

from pdctl.dashboard.notes import Kind, Notes
from pdctl.dashboard.source import Source
from pdctl.dashboard.view_state import Operation, Request
from pdctl.errors import PdctlError

# Beyond what the steps of each have as their own limits.
LIMITS_S: dict[Operation, float] = {"restart": 3600.0, "drain": 330.0, "undrain": 30.0}
_DOING: dict[Operation, str] = {"restart": "restarting {}", "drain": "draining {}", "undrain": "undraining {}"}
_DONE: dict[Operation, str] = {
    "restart": "{} was restarted",
    "drain": "{} is drained: no request is in flight there",
    "undrain": "{} gets requests again",
}


class Operations:
    """The operations that are under way, one at a time for each process."""

    def __init__(self, source: Source, notes: Notes, on_change: Callable[[], None]) -> None:
        self._source = source
        self._notes = notes
        self._on_change = on_change
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by process

    def begin(self, request: Request) -> None:
        """Begin what was asked for."""
        name = request.process
        if name in self._tasks:
            self._say(f"{request} refused", "error", f"{request}: something is being done with it already")
            return
        self._tasks[name] = asyncio.create_task(self._run(request))
        self._tasks[name].add_done_callback(lambda _: self._tasks.pop(name))

    async def close(self) -> None:
        """Wait for nothing any more; a restart goes on by itself."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, request: Request) -> None:
        operation, name = request
        key, limit_s = f"operation on {name}", LIMITS_S[operation]
        self._say(key, "work", _DOING[operation].format(name))
        try:
            async with asyncio.timeout(limit_s):
                await self._do(request)
        except TimeoutError:
            self._say(key, "error", f"{request}: it has not ended within {limit_s:g} s, and may go on")
        except PdctlError as error:
            self._say(key, "error", f"{request}: {error}")
        except Exception as error:  # shown, and no more: the end of the view would end what `pdctl up` holds
            self._say(key, "error", f"{request}: internal error: {type(error).__name__}: {error}")
        else:
            self._say(key, "success", _DONE[operation].format(name))

    async def _do(self, request: Request) -> None:
        operation, name = request
        if operation == "restart":
            await self._source.restart(name)
        elif operation == "drain":
            await self._source.drain(name)
        else:
            await self._source.undrain(name)

    def _say(self, key: str, kind: Kind, text: str) -> None:
        self._notes.say(key, kind, " ".join(text.split()))
        self._on_change()
