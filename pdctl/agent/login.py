"""What systemd's login manager does to a user's processes and shared memory once the user has logged out."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import Any, Dict, List

_SESSION = re.compile(r"/session-[^/]*\.scope")
_FOLDERS = ("usr/lib/systemd", "run/systemd", "etc/systemd")  # a later one counts more
_FIRST_PERSON_UID = 1000  # below it are the users of the system
_YES = ("yes", "y", "true", "t", "on", "1")


def login_rules(root: Path = Path("/")) -> Dict[str, Any]:
    """``user``; whether a logout ends processes of this session (``kills_processes``), or ``removes_ipc``.

    Nothing happens to what does not run in a session of the login manager's.
    """
    user = _user_name()
    in_session = _SESSION.search(_read(root / "proc/self/cgroup")) is not None
    settings = _settings(root)
    return {
        "user": user,
        "kills_processes": in_session and _kills(settings, user),
        "removes_ipc": in_session and _removes_ipc(settings, root, user),
    }


def _kills(settings: Dict[str, str], user: str) -> bool:
    """As logind decides it: the users that are spared, then those that are named, then the rest."""
    if user in settings.get("KillExcludeUsers", "root").split():
        return False
    only = settings.get("KillOnlyUsers", "").split()
    return user in only if only else settings.get("KillUserProcesses", "no").lower() in _YES


def _removes_ipc(settings: Dict[str, str], root: Path, user: str) -> bool:
    if os.geteuid() < _FIRST_PERSON_UID or (root / "var/lib/systemd/linger" / user).exists():
        return False
    return settings.get("RemoveIPC", "yes").lower() in _YES


def _settings(root: Path) -> Dict[str, str]:
    """The file of the place that counts most, then the additions, in the order of their names."""
    files = [root / folder / "logind.conf" for folder in _FOLDERS]
    additions = {path.name: path for folder in _FOLDERS for path in (root / folder / "logind.conf.d").glob("*.conf")}
    files = [path for path in files if path.exists()][-1:] + [additions[name] for name in sorted(additions)]
    pairs = [line.split("=", 1) for path in files for line in _lines(path) if "=" in line]
    return {key.strip(): value.strip() for key, value in pairs}


def _lines(path: Path) -> List[str]:
    return [line for line in _read(path).splitlines() if not line.lstrip().startswith(("#", ";"))]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no systemd here
        return ""


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.geteuid())
