"""The processes of one deployment on one host: starting, watching, and ending them with everything below them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from pdctl.agent.backoff import Restart
from pdctl.agent.child import Child, Command
from pdctl.agent.kill import kill_until_gone, own_descendants, process_tree
from pdctl.agent.logs import Line
from pdctl.agent.paths import AgentError, write_json
from pdctl.agent.procfs import Identity, Stat, boot_id, command_line
from pdctl.agent.sampler import TreeSampler
from pdctl.agent.subscriber import Subscriber
from pdctl.agent.supervision import KILL_S, Hands, Look, Supervision

AGENT = "agent"  # the name in guardian's and agent's own tag
SAMPLE_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

log = logging.getLogger(__name__)


class Supervisor:
    """Owns the children. All methods run in the event loop of the main thread."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.subscribers: Set[Subscriber] = set()
        self._folder = folder
        self._run_id = run_id
        self._children: Dict[str, Child] = {}
        self._endings: Dict[str, asyncio.Task[None]] = {}
        self._supervisions: Dict[str, Supervision] = {}
        self._looking_after: Dict[str, asyncio.Task[None]] = {}
        self._sampler = TreeSampler(run_id)
        self._recorded: Set[Identity] = set()
        self._closing = False

    def start(
        self, name: str, argv: List[str], env: Dict[str, str], cwd: Optional[str], grace_s: float
    ) -> Dict[str, Any]:
        """Start a process; a name may be used again once nothing of its last process lives."""
        if self._closing:
            raise AgentError("the agent is shutting down")
        if not _NAME.fullmatch(name) or name == AGENT or not argv:
            raise AgentError(f"a process needs a command line and a name of letters, digits, dots and dashes: {name!r}")
        if name in self._children and not self._is_over(name):
            last = self._children[name]
            raise AgentError(f"{name} runs already (pid {last.pid}, {last.state})")
        self._leave_alone(name)
        child = Child(name, self._folder, self._pass_lines)
        self._begin(child, Command(argv, env, cwd, grace_s))
        return child.snapshot()

    def supervise(
        self, name: str, restart: Restart, look: Look, *, argv: Optional[List[str]], env: Optional[Dict[str, str]]
    ) -> Dict[str, Any]:
        """Restart a process from now on, until it is stopped. May be called again, with other settings.

        ``argv``, ``env``: other ones for its next lives.
        """
        child = self._child(name)
        if child.state not in ("starting", "ready", "restarting") or self._closing:
            raise AgentError(f"{name} cannot be supervised: it is {child.state}")
        if name not in self._supervisions and (look.serves or look.probe_url is None):
            child.serves()
        command = child.command
        child.command = command._replace(argv=argv or command.argv, env=command.env if env is None else env)
        self._leave_alone(name)
        hands = Hands(self._next_life, self._note_tree, self._until_gone, self._pass_change)
        self._supervisions[name] = supervision = Supervision(child, restart, look, hands)
        self._looking_after[name] = task = asyncio.get_running_loop().create_task(supervision.run())
        task.add_done_callback(partial(_log_failure, name))
        self._pass_change(child)
        return child.snapshot()

    async def stop(self, name: str, grace_s: Optional[float] = None) -> Dict[str, Any]:
        """SIGTERM to the process's group, then after the grace SIGKILL to all that is left of its tree."""
        child = self._child(name)
        self._leave_alone(name)
        if child.exit_code is None:
            await self._end(child, child.command.grace_s if grace_s is None else grace_s)
        elif child.state != "exited":
            child.state_after, child.stopping = "exited", True
            self._pass_change(child)
        await asyncio.shield(self._endings[name])
        return child.snapshot()

    async def shutdown(self, grace_s: Optional[float] = None) -> None:
        """Stop everything at once, and whatever else lives below the agent."""
        self._closing = True
        results = await asyncio.gather(*(self.stop(name, grace_s) for name in self._children), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("%s", result)
        left = await asyncio.to_thread(kill_until_gone, own_descendants, KILL_S)
        if left:
            raise AgentError(f"could not end {describe(left)}")

    def snapshots(self) -> List[Dict[str, Any]]:
        """All processes in the order of their start."""
        return [child.snapshot() for child in self._children.values()]

    def reap(self) -> None:
        """Take the exits of children, and of orphans that the agent has adopted."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._reaped(pid, os.waitstatus_to_exitcode(status))

    async def sample_forever(self) -> None:
        """About every second, note what each tree uses and which processes it has."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                await self._sample()
            except Exception:  # figures for people: processes go on without them
                log.exception("sampling failed")

    def _reaped(self, pid: int, exit_code: int) -> None:
        for child in self._children.values():
            if child.pid == pid and child.exit_code is None:
                child.ended(exit_code)
                if child.name in self._supervisions:
                    self._supervisions[child.name].ended(exit_code)
                self._endings[child.name] = asyncio.get_running_loop().create_task(self._end_rest(child))
                log.info("%s, pid %d, exited with %d", child.name, pid, exit_code)
                self._pass_change(child)
                return

    def _child(self, name: str) -> Child:
        child = self._children.get(name)
        if child is None:
            raise AgentError(f"no process {name!r}")
        return child

    def _begin(self, child: Child, command: Command) -> None:
        child.start(self._run_id, command, self._pass_change)
        self._children[child.name] = child
        self._endings.pop(child.name, None)
        log.info("started %s, pid %d: %s", child.name, child.pid, " ".join(command.argv))
        self._pass_change(child)

    def _next_life(self, last: Child) -> Child:
        child = Child(last.name, self._folder, self._pass_lines, last.restarts + 1, last.last_end)
        self._begin(child, last.command)
        child.say(f"{last.name} was started again ({child.restarts}): it {last.last_end}")
        return child

    def _leave_alone(self, name: str) -> None:
        """End supervision."""
        self._supervisions.pop(name, None)
        task = self._looking_after.pop(name, None)
        if task is not None:
            task.cancel()

    async def _end(self, child: Child, grace_s: float) -> None:
        if not child.stopping:
            child.stopping = True
            self._pass_change(child)
            await self._note_tree(child)
            child.signal_group(signal.SIGTERM)
        if await child.ends_within(grace_s):
            return
        log.warning("%s, pid %d, is still there after %g s: SIGKILL", child.name, child.pid, grace_s)
        left = await self._kill_tree(child)
        if left or not await child.ends_within(KILL_S):
            raise AgentError(f"{child.name} did not end after SIGKILL: {describe(left)}")

    async def _end_rest(self, child: Child) -> None:
        """Nothing may outlive the process it belongs to: it would hold memory and ports."""
        await self._note_tree(child)
        left = await self._kill_tree(child)
        while left and child.state == "restarting":
            child.note = f"it is not started again while something of it lives that cannot be ended: {describe(left)}"
            self._pass_change(child)
            left = await self._kill_tree(child)
        child.note = None
        if left:
            log.error("could not end what %s left behind: %s", child.name, describe(left))
        child.close()

    async def _until_gone(self, child: Child) -> None:
        await asyncio.shield(self._endings[child.name])

    async def _note_tree(self, child: Child) -> None:
        """While its parent lives, a process is found that gives no other sign of whose it is.

        Whose GPU memory is to be waited for is told by it too.
        """
        stats = await asyncio.to_thread(process_tree, self._run_id, child.name, frozenset(child.tree))
        child.saw(child.tree | {stat.identity for stat in stats})

    async def _kill_tree(self, child: Child) -> List[Stat]:
        find = partial(process_tree, self._run_id, child.name, frozenset(child.tree))
        return await asyncio.to_thread(kill_until_gone, find, KILL_S)

    def _is_over(self, name: str) -> bool:
        ending = self._endings.get(name)
        return ending is not None and ending.done() and self._children[name].state != "restarting"

    async def _sample(self) -> None:
        running = {name: child for name, child in self._children.items() if child.exit_code is None}
        trees = {name: set(child.tree) for name, child in running.items()}
        usages = await asyncio.to_thread(self._sampler.sample, trees)
        for name, usage in usages.items():
            child = running[name]
            if child.exit_code is not None:
                continue
            child.cpu_percent, child.memory_bytes = usage.cpu_percent, usage.memory_bytes
            if not child.stopping:  # from then on, what was seen of it is kept
                child.saw(usage.tree)
        ending = [
            child.tree for name, child in self._children.items() if name not in running and not self._is_over(name)
        ]
        await self._record(set().union(*(usage.tree for usage in usages.values()), *ending))

    async def _record(self, identities: Set[Identity]) -> None:
        """For a sweep after guardian and agent were killed: a process may have overwritten its environment."""
        if identities == self._recorded:
            return
        content = {"run_id": self._run_id, "boot_id": boot_id(), "pids": sorted(identities)}
        await asyncio.to_thread(write_json, self._folder / "pids.json", content)
        self._recorded = identities

    def _pass_lines(self, process: str, lines: List[Line]) -> None:
        for subscriber in self.subscribers:
            subscriber.lines(process, lines)

    def _pass_change(self, child: Child) -> None:
        for subscriber in self.subscribers:
            subscriber.changed(child.snapshot())


def describe(stats: List[Stat]) -> str:
    """Process ids with their command lines, for an error message."""
    return ", ".join(f"pid {stat.pid} ({command_line(stat.pid)[:60]})" for stat in stats) or "nothing that /proc shows"


def _log_failure(name: str, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("supervising %s has ended", name, exc_info=task.exception())
