"""The interpreter that has the engine: which Python it is."""

from __future__ import annotations

import subprocess
from typing import Dict

TIMEOUT_S = 20.0
_CODE = "import platform; print(platform.python_version())"


def examine_interpreter(python: str) -> Dict[str, str]:
    """``path``, and its ``version`` or the ``problem``."""
    try:
        done = subprocess.run([python, "-c", _CODE], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError as error:
        return {"path": python, "problem": f"cannot be run: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"path": python, "problem": f"did not say in {TIMEOUT_S:g} s what it is"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"path": python, "problem": f"cannot say what it is: {said[-1]}"}
    return {"path": python, "version": done.stdout.strip()}
