"""Healing what a guardian could not: killing what still lives of a run, found by tag and by what was last recorded."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

from pdctl.agent.guardian import wait_for_lock
from pdctl.agent.kill import kill_until_gone, run_processes
from pdctl.agent.paths import AgentError, socket_path
from pdctl.agent.procfs import Identity, Stat, boot_id, command_line

KILL_S = 10.0
LOCK_S = 1.0  # for the kernel to release a killed process's lock


def sweep(folder: Path, run_id: str, wait_s: float, *, force: bool) -> Dict[str, Any]:
    """Kill all that lives of the run. Guardian and agent get ``wait_s`` to end by themselves.

    If they do not, nothing is done unless ``force`` is set; then they are killed too. Returns ``killed`` and ``left``,
    both lists of ``{"pid", "command"}``, and ``agent_lives``. Blocks.
    """
    if not _has_ended(folder, wait_s) and not force:
        return {"killed": [], "left": [], "agent_lives": True}
    find = partial(run_processes, run_id, recorded(folder))
    killed = _describe(find())
    left = _describe(kill_until_gone(find, KILL_S))
    agent_lives = not _has_ended(folder, LOCK_S)  # out of sight: the folder is shared with another machine
    if not left and not agent_lives:
        socket_path(run_id).unlink(missing_ok=True)
        for name in ("agent.json", "pids.json"):
            (folder / name).unlink(missing_ok=True)
    return {"killed": killed, "left": left, "agent_lives": agent_lives}


def _has_ended(folder: Path, wait_s: float) -> bool:
    return not folder.is_dir() or wait_for_lock(folder, wait_s)


def recorded(folder: Path) -> List[Identity]:
    """The processes that the agent noted last; none of another boot."""
    try:
        content = json.loads((folder / "pids.json").read_text())
        identities = [Identity(pid, start) for pid, start in content["pids"]]
        return identities if content["boot_id"] == boot_id() else []
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise AgentError(f"{folder / 'pids.json'} is damaged: remove it") from None


def _describe(stats: List[Stat]) -> List[Dict[str, Any]]:
    return [{"pid": stat.pid, "command": command_line(stat.pid)} for stat in stats]
