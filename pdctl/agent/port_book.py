"""The ports that this user's deployments have on this host, so that two that begin at once do not plan the same ones.

One file for all runs, changed under a lock. An entry counts for as long as the process that reserved it lives.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional

from pdctl.agent.lock import take_lock
from pdctl.agent.paths import AgentError, host_folder, write_json
from pdctl.agent.procfs import boot_id, read_stat

LOCK_S = 5.0
_LOCK = "ports.lock"


class Entry(NamedTuple):
    """A port of a run."""

    port: int
    run: str
    pid: int  # of the agent that reserved it
    start: int
    boot: str
    network: int  # the network namespace: each has ports of its own

    def counts(self, boot: str) -> bool:
        """Whether its agent lives."""
        stat = read_stat(self.pid) if self.boot == boot else None
        return stat is not None and stat.start == self.start

    @property
    def holder(self) -> str:
        """Who has it, for people."""
        return f"reserved by deployment run {self.run}"


class PortBook:
    """The book; ``folder``: where it is kept (None: where all runs of this user on this host share it)."""

    def __init__(self, folder: Optional[Path] = None) -> None:
        self._folder = host_folder() if folder is None else folder
        self._path = self._folder / "ports.json"

    def reserve(self, run_id: str, ports: Iterable[int]) -> Dict[int, str]:
        """Make these the run's ports, and no others, for as long as this process lives.

        Returns those that others have, with their holders; if there are any, nothing has changed. Blocks.
        """
        wanted, network = set(ports), _network()
        with self._locked():
            others = [entry for entry in self._living() if (entry.run, entry.network) != (run_id, network)]
            taken = {entry.port: entry.holder for entry in others if entry.network == network and entry.port in wanted}
            if not taken:
                own = [_own_entry(port, run_id, network) for port in sorted(wanted)]
                write_json(self._path, [entry._asdict() for entry in (*others, *own)])
            return taken

    def reserved(self, ports: Iterable[int]) -> Dict[int, str]:
        """Those of the ports that are reserved, with their holders."""
        wanted, network = set(ports), _network()
        return {
            entry.port: entry.holder for entry in self._living() if entry.network == network and entry.port in wanted
        }

    def _living(self) -> List[Entry]:
        boot = boot_id()
        return [entry for entry in self._read() if entry.counts(boot)]

    def _read(self) -> List[Entry]:
        try:
            content: List[Dict[str, Any]] = json.loads(self._path.read_text())
            return [Entry(*(entry[field] for field in Entry._fields)) for entry in content]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError):
            raise AgentError(f"{self._path} is damaged, or of another version of pdctl: remove it") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = take_lock(self._folder, LOCK_S, _LOCK)
        if lock is None:
            raise AgentError(f"{self._folder / _LOCK} was not free within {LOCK_S:g} s: see `fuser` for who holds it")
        try:
            yield
        finally:
            os.close(lock)


def _own_entry(port: int, run_id: str, network: int) -> Entry:
    stat = read_stat(os.getpid())
    return Entry(port, run_id, os.getpid(), stat.start if stat else 0, boot_id(), network)


def _network() -> int:
    return Path("/proc/self/ns/net").stat().st_ino
