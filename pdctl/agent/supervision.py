"""Keeping one process running: it is started again when it ends, or when it has fallen silent."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Callable, Coroutine, List, NamedTuple, Optional

from pdctl.agent.backoff import Backoff, Restart
from pdctl.agent.child import Child
from pdctl.agent.gpu_memory import still_held
from pdctl.agent.health_probe import SILENT, HealthProbe

GPU_MEMORY_S = 60.0  # for a driver to take back the memory of a process that has ended, before that is told
KILL_S = 10.0  # SIGKILL ends any process that is not stuck in the kernel
_START_PROBE_S = 1.0  # a process that starts is asked more often
_MEMORY_POLL_S = 1.0

log = logging.getLogger(__name__)


class Hands(NamedTuple):
    """What a supervision has done by the supervisor."""

    start: Callable[[Child], Child]  # the next life after this one; raises OSError and ValueError
    note_tree: Callable[[Child], Coroutine[None, None, None]]  # remember what is below it
    until_gone: Callable[[Child], Coroutine[None, None, None]]  # return once nothing of its tree lives
    changed: Callable[[Child], None]


class Look(NamedTuple):
    """How a process's readiness and silence are seen."""

    probe_url: Optional[str] = None  # see HealthProbe; None: it cannot be asked, and is ready when it has started
    ready_s: Optional[float] = None  # how long it may take to become ready
    serves: bool = True  # it was seen to serve when its supervision began


class Supervision:
    """Looks after one process over its lives."""

    def __init__(self, child: Child, restart: Restart, look: Look, hands: Hands) -> None:
        self._child = child
        self._restart = restart
        self._probe = HealthProbe(look.probe_url, restart.probe_timeout_s) if look.probe_url else None
        self._ready_s = look.ready_s
        self._hands = hands
        self._backoff = Backoff(restart)
        self._fault: Optional[str] = None  # for which it was killed

    def ended(self, exit_code: int) -> None:
        """It was reaped: decide at once what follows, so that nobody takes this for its last end."""
        child, fault = self._child, self._fault
        self._fault = None
        if fault is not None:
            child.last_end = fault
        if fault is not None or self._restart.covers(exit_code):
            self._plan_next()

    async def run(self) -> None:
        """Look after it until it is to be left alone, or this is cancelled."""
        while True:
            await self._watch()
            if not await self._next_life():
                return

    async def _next_life(self) -> bool:
        """Whether it lives again."""
        while self._child.state == "restarting":
            await self._hands.until_gone(self._child)
            await self._until_memory_is_free()
            await asyncio.sleep(max(0.0, (self._child.restart_at or 0.0) - time.monotonic()))
            if self._start():
                return True
        return False

    def _plan_next(self) -> None:
        child = self._child
        delay_s = self._backoff.after(child.served_s)
        if delay_s is None:
            child.state_after = "failed"
            log.error("%s keeps failing: %s, and is not started again", child.name, child.last_end)
            return
        child.state_after, child.restart_at = "restarting", time.monotonic() + delay_s
        log.warning("%s %s: it is started again in %g s", child.name, child.last_end, delay_s)

    def _start(self) -> bool:
        try:
            self._child = self._hands.start(self._child)
        except (OSError, ValueError) as error:
            self._child.last_end = f"could not be started again: {error}"
            self._plan_next()
            self._hands.changed(self._child)
            return False
        if self._probe is None:  # nobody tells when it serves
            self._child.serves()
            self._hands.changed(self._child)
        return True

    async def _watch(self) -> None:
        """Return when it has been reaped; what falls silent, or is not ready in time, is killed."""
        child, silent = self._child, 0
        while not await child.ends_within(self._pause_s()):
            if self._probe is None or child.stopping:
                continue
            answer = await self._probe.ask(child.ports)
            if child.exit_code is not None or child.stopping or answer is None:
                continue
            if child.state == "starting":
                await self._look_at_start(answer)
                continue
            silent = silent + 1 if answer == SILENT else 0
            if silent >= self._restart.probe_failures:
                await self._kill(f"did not answer {silent} times in a row at {self._probe.path}")

    def _pause_s(self) -> Optional[float]:
        """Until it is asked again; None: it is not."""
        if self._probe is None or self._restart.policy == "never":
            return None
        interval = self._restart.probe_interval_s
        return min(interval, _START_PROBE_S) if self._child.state == "starting" else interval

    async def _look_at_start(self, answer: int) -> None:
        child = self._child
        if answer == 200:
            child.serves()
            self._hands.changed(child)
        elif self._ready_s is not None and child.uptime_s > self._ready_s:
            await self._kill(f"was not ready within {self._ready_s:g} s")

    async def _kill(self, fault: str) -> None:
        """The rest of its tree is killed as it ends."""
        child = self._child
        self._fault, child.note = fault, f"it {fault}: SIGKILL"
        log.warning("%s, pid %d, %s: SIGKILL", child.name, child.pid, fault)
        self._hands.changed(child)
        await self._hands.note_tree(child)
        child.signal_group(signal.SIGKILL)
        if not await child.ends_within(KILL_S):
            child.note = f"it {fault}, and does not end after SIGKILL"
            self._hands.changed(child)
            await child.exited.wait()

    async def _until_memory_is_free(self) -> None:
        child, deadline = self._child, time.monotonic() + GPU_MEMORY_S
        while held := await self._held_memory():
            if time.monotonic() > deadline:
                pids = ", ".join(map(str, held))
                child.note = f"it is not started again while its last processes hold GPU memory (pid {pids})"
                self._hands.changed(child)
            await asyncio.sleep(_MEMORY_POLL_S)  # the driver announces nothing

    async def _held_memory(self) -> List[int]:
        try:
            return await asyncio.to_thread(still_held, self._child.seen)
        except (OSError, ValueError) as error:
            log.warning("%s: whether its GPU memory is free is not known: nvidia-smi %s", self._child.name, error)
            return []
