"""Of which run the files of an agent's folder are: ``run.json``, which stays when its processes have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, Optional

from pdctl.agent.logs import now
from pdctl.agent.paths import AgentError, write_json


class RunRecord(NamedTuple):
    """The run that was the last to begin, or to be ended, in a folder."""

    run_id: str
    began: Optional[float]  # by the clock of its log lines; None: no agent of it has begun
    ended: bool  # for good


def begin_run(folder: Path, run_id: str) -> None:
    """Note the begin of a run's agent. AgentError if the run was ended before. The caller holds the folder's lock."""
    last = _read(folder)
    if last is not None and last.run_id == run_id and last.ended:
        raise AgentError(f"run {run_id} was ended before its agent began")
    _write(folder, RunRecord(run_id, now(), False))


def end_run(folder: Path, run_id: str) -> None:
    """Let no agent of the run begin in the folder any more. The caller holds the folder's lock."""
    last = _read(folder)
    began = last.began if last is not None and last.run_id == run_id else None
    _write(folder, RunRecord(run_id, began, True))


def began(folder: Path, run_id: str) -> Optional[float]:
    """When the run began here, by the clock of its log lines; None where it did not."""
    last = _read(folder)
    return last.began if last is not None and last.run_id == run_id else None


def _read(folder: Path) -> Optional[RunRecord]:
    try:
        return RunRecord(**json.loads((folder / "run.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # damaged by a crash of the machine: nothing of it runs any more
        return None


def _write(folder: Path, record: RunRecord) -> None:
    write_json(folder / "run.json", record._asdict())
