"""Where an agent keeps its files, and where its socket is.

The folder given by ``--dir`` holds ``agent.json`` (who serves, and on which socket), ``agent.lock`` (held while
guardian or agent live), ``agent.log``, ``pids.json``, ``run.json`` (see run_record.py), ``secrets/`` while it runs, and
``logs/``. The socket lies in the
user's runtime folder instead, because a Unix socket's path has at most 107 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Dict

SOCKET_PATH_LIMIT = 107
SECRETS = "secrets"


class AgentError(Exception):
    """The agent cannot do what it was asked; one clear line."""


def prepare_folder(folder: Path) -> None:
    """Create the agent's folder and its ``logs``, for this user only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "logs").mkdir(mode=0o700, exist_ok=True)


def socket_path(run_id: str) -> Path:
    """Where the run's agent listens; the folder is created, and refused unless it is this user's alone."""
    name = f"{hashlib.sha256(run_id.encode()).hexdigest()[:16]}.sock"  # as short for every run
    fits = (folder for folder in _runtime_folders() if len(os.fsencode(folder / name)) <= SOCKET_PATH_LIMIT)
    folder = next(fits)  # the last of them is short
    _own_folder(folder)
    return folder / name


def host_folder() -> Path:
    """Where it is kept what all runs of this user on this host share, wherever their own files are."""
    folder = _shared_folder()
    _own_folder(folder)
    return folder


def read_agent_file(folder: Path) -> Dict[str, Any]:
    """Who serves this folder: ``run_id``, ``pid``, ``guardian_pid``, ``socket``. FileNotFoundError when nobody does."""
    path = folder / "agent.json"
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("socket"), str):
        raise AgentError(f"{path} is damaged: run `pdctl down`")
    return content


def write_json(path: Path, content: object) -> None:
    """Replace the file in one step: a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_secret(folder: Path, name: str, text: str) -> None:
    """Write a file that only this user can read, into the agent's folder for secrets."""
    path = _secret_path(folder, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_secret(folder: Path, name: str) -> str:
    """What `write_secret` has written; AgentError where it has not."""
    try:
        return _secret_path(folder, name).read_text()
    except FileNotFoundError:
        raise AgentError(f"there is no {name!r} among the secrets of {folder}") from None


def remove_secrets(folder: Path) -> None:
    """Remove all that `write_secret` has written."""
    shutil.rmtree(folder / SECRETS, ignore_errors=True)


def _secret_path(folder: Path, name: str) -> Path:
    if not name or "/" in name or name.startswith("."):
        raise AgentError(f"{name!r} is no name for a file")
    return folder / SECRETS / name


def _runtime_folders() -> list[Path]:
    fallback = _shared_folder()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return [Path(runtime) / "pdctl", fallback] if runtime and Path(runtime).is_dir() else [fallback]


def _shared_folder() -> Path:
    return Path(f"/tmp/pdctl-{os.geteuid()}")


def _own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise AgentError(f"{folder} is not a folder of yours: remove it, or set XDG_RUNTIME_DIR")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise AgentError(f"{folder} is open to other users: run `chmod 700 {folder}`")
