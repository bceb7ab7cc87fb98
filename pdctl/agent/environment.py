"""A Python environment with pdctl and its engine, on a host that has neither.

Each lies in a folder named after what is in it, so that several versions live side by side and one that is complete is
never touched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Deque, List, Optional

from pdctl.agent.lock import take_lock
from pdctl.agent.paths import AgentError

ENVIRONMENTS = Path("~/.local/share/pdctl/environments")
COMPLETE = "complete"  # a file that is made last
VENV = "venv"
LOCK_S = 1800.0  # another may be at it
_OLDEST = (3, 11)
_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(14, 10, -1)))
_COPY_BYTES = 1024 * 1024
_TOLD_LINES = 3  # of a command that failed
_PIP_ADVICE = "give the host a way to an index, or `--wheelhouse` a folder of wheels for its Python"


def environment_python(name: str) -> Optional[str]:
    """The interpreter of a complete environment."""
    folder = ENVIRONMENTS.expanduser() / name
    return str(folder / VENV / "bin/python") if (folder / COMPLETE).exists() else None


def receive(path: Path) -> None:
    """Write stdin to a file, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, _COPY_BYTES)
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()


def install(folder: Path, wheel: str, python: Optional[str], wheelhouse: Optional[Path], more: List[str]) -> None:
    """Make the environment in ``folder`` from the files that were received into it; says what it does line by line.

    ``wheelhouse``: a folder of wheels here; then nothing is asked of an index. ``more``: requirements that are
    installed without their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if take_lock(folder, LOCK_S) is None:
        raise AgentError(f"another pdctl has been making {folder} for {LOCK_S:g} s")
    if (folder / COMPLETE).exists():
        return
    interpreter = _new_enough(python)
    _say(f"making an environment with {interpreter}")
    venv = folder / VENV
    _run([interpreter, "-m", "venv", "--clear", str(venv)], "install the package that has it (Debian: python3-venv)")
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pip += ["--progress-bar", "off", *(["--no-index", "--find-links", str(wheelhouse)] if wheelhouse else [])]
    _run([*pip, "--constraint", str(folder / "constraints.txt"), f"{folder / wheel}[demo]"], _PIP_ADVICE)
    for requirement in more:
        _run([*pip, "--no-deps", requirement], _PIP_ADVICE)
    (folder / COMPLETE).touch()


def _new_enough(python: Optional[str]) -> str:
    check = f"import sys; sys.exit(sys.version_info < {_OLDEST})"
    for candidate in [python] if python else _PYTHONS:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "-c", check], check=False, capture_output=True).returncode == 0:
            return path
    oldest = ".".join(map(str, _OLDEST))
    raise AgentError(f"no Python {oldest} or newer among {python or ', '.join(_PYTHONS)}: install one")


def _run(command: List[str], advice: str) -> None:
    """Run to the end, its lines passed on as they come; AgentError has the last of them."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    last: Deque[str] = deque(maxlen=_TOLD_LINES)
    for line in process.stdout:
        last.append(line.strip())
        _say(line.rstrip())
    if process.wait() != 0:
        raise AgentError(f"`{' '.join(command[:4])} ...` failed: {' / '.join(last)}: {advice}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
