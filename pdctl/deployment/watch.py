"""Watching a deployment's processes: their latest state, and the first end that matters."""

import asyncio
import signal
from collections.abc import Callable, Collection, Coroutine, Mapping
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.snapshot import Snapshot, describe_end
from pdctl.deployment.together import together
from pdctl.errors import HostUnreachableError, ProcessDiedError, StepTimeoutError
from pdctl.hosts.client import AgentClient, AgentGoneError

UNREACHABLE_S = 30.0  # for a host that cannot be reached, while others wait for what happens there
RECONNECT_S = 1.0

Result = TypeVar("Result")
Ends = Callable[[Mapping[str, Snapshot], Snapshot], bool]


def any_end(_: Mapping[str, Snapshot], changed: Snapshot) -> bool:
    """Whether a process has ended, and does not come back by itself."""
    return changed.has_exited


class ProcessWatch:
    """Follows all processes through their agents; to be used as an async context.

    ``ends``: whether a change ends what is watched; it gets all processes by name, and the one that changed.
    ``again``: those that have ended and will be started again: their last end is of no interest, and nor is the end
    of any other. ``patience_s``: for a host that cannot be reached; None: as long as it takes.
    """

    def __init__(
        self,
        deployment: Deployment,
        on_change: Callable[[Snapshot], None] = lambda snapshot: None,
        *,
        ends: Ends = any_end,
        again: Collection[str] = (),
        patience_s: float | None = UNREACHABLE_S,
    ) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self._deployment = deployment
        self._on_change = on_change
        self._ends = ends
        self._again = again
        self._patience_s = patience_s
        self._clients: dict[str, AgentClient] = {}
        self._changed = asyncio.Event()
        self._receivers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await together(self._subscribe(host) for host in self._deployment.hosts)
        except BaseException:
            await self._close()
            raise
        self._receivers = {asyncio.create_task(self._follow(host)) for host in self._deployment.hosts}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def unless_one_dies(self, work: Coroutine[object, object, Result]) -> Result:
        """The result of ``work``; given up on a process's end (ProcessDiedError) or an agent's (AgentGoneError)."""
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

    async def _subscribe(self, host: str) -> None:
        """Connect to a host's agent, when the host can be reached, and take the state of all its processes."""
        client = await self._connect(host)
        try:
            answers = await client.call("subscribe", logs=False)
        except AgentGoneError:  # or the way to it: a second connection tells
            await client.close()
            client = await self._connect(host)
            answers = await client.call("subscribe", logs=False)
        for snapshot in map(Snapshot.model_validate, answers):
            if snapshot.name not in self._again or snapshot.name in self.snapshots:
                self._take(snapshot)

    async def _connect(self, host: str) -> AgentClient:
        deadline = None if self._patience_s is None else monotonic() + self._patience_s
        while True:
            try:
                self._clients[host] = client = await self._deployment.connect(host)
                return client
            except HostUnreachableError:
                if deadline is not None and monotonic() > deadline:
                    raise
            await asyncio.sleep(RECONNECT_S)  # nobody tells when it can be reached again

    async def _follow(self, host: str) -> None:
        for snapshot in list(self.snapshots.values()):
            self._check(snapshot)
        while True:
            try:
                await self._receive(self._clients[host])
            except AgentGoneError as gone:
                if not await self._reconnect(host):
                    self._agent_ended(host, gone)
                    await _never()

    async def _receive(self, client: AgentClient) -> None:
        while True:
            event = await client.next_event()
            if event["event"] == "process":
                snapshot = Snapshot.model_validate(event["process"])
                self._take(snapshot)
                self._check(snapshot)

    async def _reconnect(self, host: str) -> bool:
        """The connection has ended: by the agent's end (False), or with the way to it."""
        await self._clients[host].close()
        try:
            await self._subscribe(host)
        except AgentGoneError:
            return False
        for snapshot in list(self.snapshots.values()):
            self._check(snapshot)
        return True

    def _agent_ended(self, host: str, gone: AgentGoneError) -> None:
        """All that it ran has ended with it."""
        for process in self._deployment.plan.processes:
            if process.host == host:
                known = self.snapshots.get(process.name, Snapshot(name=process.name, pid=0, state="unknown"))
                ended = {"state": "exited", "exit_code": -signal.SIGKILL, "stopped": False, "last_end": str(gone)}
                self._take(known.model_copy(update=ended))
        if any(self._ends(self.snapshots, snapshot) for snapshot in list(self.snapshots.values())):
            raise gone

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshots[snapshot.name] = snapshot
        self._changed.set()
        self._on_change(snapshot)

    def _check(self, snapshot: Snapshot) -> None:
        if self._again and snapshot.name not in self._again:
            return
        if self._ends(self.snapshots, snapshot):
            error = ProcessDiedError(describe_end(snapshot), detail="\n".join(snapshot.last_lines))
            error.processes = (snapshot.name,)
            raise error

    def _progress(self, name: str) -> str:
        snapshot = self.snapshots.get(name)
        if snapshot is None or snapshot.progress is None:
            return ""
        return f" (last: {snapshot.progress.step}, {snapshot.progress.done} of {snapshot.progress.total})"

    async def _close(self) -> None:
        for receiver in self._receivers:
            receiver.cancel()
        await asyncio.gather(*self._receivers, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))


async def _never() -> None:
    await asyncio.Event().wait()
