"""Healing what a guardian could not: killing what still lives of a run, found by tag and by what was last recorded."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

from pdctl.agent.kill import kill_until_gone, run_processes
from pdctl.agent.lock import take_lock
from pdctl.agent.paths import prepare_folder, remove_secrets, socket_path
from pdctl.agent.procfs import Identity, Stat, boot_id, command_line
from pdctl.agent.run_record import end_run

KILL_S = 10.0
LOCK_S = 1.0  # for the kernel to release a killed process's lock


def sweep(folder: Path, run_id: str, wait_s: float, *, force: bool, for_good: bool = False) -> Dict[str, Any]:
    """Kill all that lives of the run. Guardian and agent get ``wait_s`` to end by themselves.

    If they do not, nothing is done unless ``force`` is set; then they are killed too. Returns ``killed`` and ``left``,
    both lists of ``{"pid", "command"}``, and ``agent_lives``. Blocks.

    Meanwhile no other agent can begin in the folder: its files would be taken for those of this run. ``for_good``: and
    none of this run afterwards: a launcher that was killed may have left one on its way.
    """
    if for_good:
        with suppress(OSError):  # a full disk, on which no agent begins either, must not keep it from its end
            prepare_folder(folder)
    if not folder.is_dir():  # no agent has come so far as to make it
        return {**_kill(run_id, []), "agent_lives": False}
    lock = take_lock(folder, wait_s)
    if lock is None and not force:
        return {"killed": [], "left": [], "agent_lives": True}
    result = _kill(run_id, recorded(folder, run_id))
    lock = take_lock(folder, LOCK_S) if lock is None else lock
    if lock is None:  # the agent is out of sight: the folder is shared with another machine
        return {**result, "agent_lives": True}
    if not result["left"]:
        _remove_files(folder, run_id)
        if for_good:
            with suppress(OSError):  # as above
                end_run(folder, run_id)
    os.close(lock)
    return {**result, "agent_lives": False}


def _kill(run_id: str, known: List[Identity]) -> Dict[str, Any]:
    find = partial(run_processes, run_id, known)
    killed = _describe(find())
    return {"killed": killed, "left": _describe(kill_until_gone(find, KILL_S))}


def recorded(folder: Path, run_id: str) -> List[Identity]:
    """The processes that the run's agent noted last; none of another boot."""
    try:
        content = json.loads((folder / "pids.json").read_text())
        identities = [Identity(pid, start) for pid, start in content["pids"]]
        return identities if (content["run_id"], content["boot_id"]) == (run_id, boot_id()) else []
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged by a crash of the machine: another boot
        return []


def _remove_files(folder: Path, run_id: str) -> None:
    socket_path(run_id).unlink(missing_ok=True)
    remove_secrets(folder)
    for name in ("agent.json", "pids.json"):
        (folder / name).unlink(missing_ok=True)


def _describe(stats: List[Stat]) -> List[Dict[str, Any]]:
    return [{"pid": stat.pid, "command": command_line(stat.pid)} for stat in stats]
