"""Watching a deployment's processes: their latest state, and the first death."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Self, TypeVar

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.snapshot import Snapshot, describe_exit
from pdctl.errors import ProcessDiedError, StepTimeoutError
from pdctl.hosts.client import AgentClient

Result = TypeVar("Result")


class ProcessWatch:
    """Follows all processes through their agents; to be used as an async context.

    ``again``: those that have ended and will be started again: their last end is of no interest.
    """

    def __init__(
        self,
        deployment: Deployment,
        on_change: Callable[[Snapshot], None] = lambda snapshot: None,
        *,
        again: Collection[str] = (),
    ) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self._deployment = deployment
        self._on_change = on_change
        self._again = again
        self._clients: list[AgentClient] = []
        self._changed = asyncio.Event()
        self._receivers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            for name, host in self._deployment.hosts.items():
                client = await host.connect(self._deployment.folder.agent_folder(name))
                self._clients.append(client)
                for answer in await client.call("subscribe", logs=False):
                    snapshot = Snapshot.model_validate(answer)
                    if snapshot.name not in self._again:
                        self._take(snapshot)
                self._receivers.add(asyncio.create_task(self._receive(client)))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def unless_one_dies(self, work: Coroutine[object, object, Result]) -> Result:
        """The result of ``work``; given up on a process's exit (ProcessDiedError) or an agent's (AgentGoneError)."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, *self._receivers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        for receiver in self._receivers:
            if receiver.done():
                receiver.result()  # raises what ended it
        return task.result()

    async def until_one_dies(self) -> None:
        """Wait for ever; raises as above."""
        await self.unless_one_dies(_never())

    async def until(self, name: str, condition: Callable[[Snapshot], bool], timeout_s: float, what: str) -> Snapshot:
        """Wait until the condition holds for a process; the timeout's error says ``what`` it did not do."""
        try:
            async with asyncio.timeout(timeout_s):
                while (snapshot := self.snapshots.get(name)) is None or not condition(snapshot):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise StepTimeoutError(f"{name} did not {what}{self._progress(name)}") from None
        return snapshot

    def started(self, snapshot: Snapshot) -> None:
        """Take what the agent answered when a process was started, unless there is newer news of it."""
        self.snapshots.setdefault(snapshot.name, snapshot)

    async def _receive(self, client: AgentClient) -> None:
        for snapshot in list(self.snapshots.values()):
            _check_alive(snapshot)
        while True:
            event = await client.next_event()
            if event["event"] == "process":
                snapshot = Snapshot.model_validate(event["process"])
                self._take(snapshot)
                _check_alive(snapshot)

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshots[snapshot.name] = snapshot
        self._changed.set()
        self._on_change(snapshot)

    def _progress(self, name: str) -> str:
        snapshot = self.snapshots.get(name)
        if snapshot is None or snapshot.progress is None:
            return ""
        return f" (last: {snapshot.progress.step}, {snapshot.progress.done} of {snapshot.progress.total})"

    async def _close(self) -> None:
        for receiver in self._receivers:
            receiver.cancel()
        await asyncio.gather(*self._receivers, return_exceptions=True)
        for client in self._clients:
            await client.close()


def _check_alive(snapshot: Snapshot) -> None:
    if snapshot.exit_code is not None:
        error = ProcessDiedError(
            describe_exit(snapshot.name, snapshot.exit_code), detail="\n".join(snapshot.last_lines)
        )
        error.processes = (snapshot.name,)
        raise error


async def _never() -> None:
    await asyncio.Event().wait()
