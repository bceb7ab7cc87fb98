"""What the user should not overlook: pinned until it is dismissed, whatever the logs do meanwhile."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from pdctl.dashboard.lines import clean
from pdctl.dashboard.units import format_duration
from pdctl.deployment.models import DeploymentStatus, ProcessStatus
from pdctl.deployment.snapshot import describe_exit

MAX_NOTES = 20  # the oldest of what is over is forgotten
_NUMBER = re.compile(r"\d+")

Kind = Literal["error", "warning", "work", "success"]  # work: what goes on, until its outcome is known


@dataclass(frozen=True)
class Note:
    """One thing to know."""

    key: str  # of two notes with the same key, the later one replaces the earlier
    kind: Kind
    text: str
    since: float
    is_past: bool = False  # it is so no more

    def line(self, now: float) -> str:
        """Its text, with how long ago it was."""
        if self.kind == "work":
            return f"{self.text}, for {format_duration(now - self.since)}"
        return f"{format_duration(now - self.since)} ago: {self.text}" if self.is_past else self.text


class Notes:
    """The notes of a view."""

    def __init__(self) -> None:
        self._now = 0.0
        self._notes: dict[str, Note] = {}  # the oldest first
        self._dismissed: set[str] = set()  # of what is still so
        self._own: set[str] = set()  # of what the user of this view asked for
        self._restarts: dict[str, int] = {}

    @property
    def now(self) -> float:
        """The time of the last look."""
        return self._now

    @property
    def shown(self) -> list[Note]:
        """What is so now, then what was, the latest first."""
        notes = [note for note in self._notes.values() if note.key not in self._dismissed]
        return sorted(notes, key=lambda note: (note.is_past, note.kind != "work", -note.since))

    def look(self, status: DeploymentStatus, now: float) -> None:
        """Take what is wrong now; what is wrong no more is kept as past."""
        self._now = now
        found = {note.key: note for note in [*self._reasons(status), *self._of_processes(status)]}
        self._end_others(found.keys())
        for note in found.values():
            self._take(note)
        kept = self._kept()
        self._notes = {key: note for key, note in self._notes.items() if not note.is_past or key in kept}

    def say(self, key: str, kind: Kind, text: str) -> None:
        """Pin the state or the outcome of what the user asked for; errors of it are past at once."""
        self._own.add(key)
        self._notes.pop(key, None)
        self._dismissed.discard(key)
        self._notes[key] = Note(key, kind, text, self._now, is_past=kind != "work")

    def dismiss(self) -> None:
        """Take away the first that is shown, unless it is work."""
        for note in self.shown:
            if note.kind != "work":
                self._dismiss(note)
                return

    def dismiss_all(self) -> None:
        """Take away all but work."""
        for note in self.shown:
            if note.kind != "work":
                self._dismiss(note)

    def _end_others(self, found: Collection[str]) -> None:
        """What is so no more is past; dismissed before, it is forgotten, and so is work of others."""
        for key, note in list(self._notes.items()):
            if note.is_past or key in found or key in self._own:
                continue
            if key in self._dismissed or note.kind == "work":
                self._dismissed.discard(key)
                del self._notes[key]
            else:
                self._notes[key] = replace(note, is_past=True)

    def _dismiss(self, note: Note) -> None:
        if note.is_past:
            del self._notes[note.key]
        else:
            self._dismissed.add(note.key)

    def _take(self, note: Note) -> None:
        """Of a note that was there already, only the text may be new."""
        known = self._notes.get(note.key)
        since = note.since if known is None or known.is_past else known.since
        self._notes[note.key] = replace(note, since=since)

    def _kept(self) -> set[str]:
        past = [note for note in self._notes.values() if note.is_past]
        return {note.key for note in sorted(past, key=lambda note: note.since)[-MAX_NOTES:]}

    def _reasons(self, status: DeploymentStatus) -> list[Note]:
        """Why it is not ready, or who changes it; unless a process's end is the reason: that note says more."""
        reason = status.reason
        if not reason or any(reason.startswith(_how(process)) for process in status.processes if _failed(process)):
            return []
        kind: Kind = "work" if status.state == "ready" else "error"
        return [Note(f"reason {_NUMBER.sub('#', reason)}", kind, reason, self._now)]

    def _of_processes(self, status: DeploymentStatus) -> list[Note]:
        found = []
        for process in status.processes:
            if _failed(process):
                found.append(Note(f"end of {process.name}", "error", _end(process), self._now))
            elif process.restarts > self._restarts.get(process.name, process.restarts):
                self._restarted(process)
            if process.warning:
                key = f"warning {process.name} {_NUMBER.sub('#', process.warning)}"
                found.append(Note(key, "warning", f"{process.name}: {process.warning}", self._now))
            self._restarts[process.name] = process.restarts
        return found

    def _restarted(self, process: ProcessStatus) -> None:
        """It ended and was started again between two looks."""
        key, text = f"end of {process.name}", f"{_how(process)}, and was started again"
        if key not in self._notes:
            self._notes[key] = Note(key, "error", text, self._now, is_past=True)


def _failed(process: ProcessStatus) -> bool:
    """Whether it ended by itself, and has not become ready again."""
    if process.state == "starting":
        return process.restarts > 0
    return process.state in ("failed", "restarting", "exited") and not process.stopped


def _how(process: ProcessStatus) -> str:
    if process.last_end is None and process.exit_code is not None:
        return describe_exit(process.name, process.exit_code)
    return f"{process.name} {process.last_end or 'ended'}"


def _end(process: ProcessStatus) -> str:
    """How a process ended, what becomes of it, and the last that it said."""
    again = f", and is started again (restart {process.restarts + (process.state == 'restarting')})"
    then = {"failed": f", and keeps failing (restarts: {process.restarts})", "restarting": again, "starting": again}
    last = f": {clean(process.last_line)}" if process.last_line else ""
    return f"{_how(process)}{then.get(process.state, '')}{last}"
