"""Which version of an engine an interpreter has installed."""

from __future__ import annotations

import subprocess
from typing import Dict, List, Optional

TIMEOUT_S = 20.0
# -P where it exists: a folder of that name in the working directory is not the package. Nothing of the engine is
# imported: that may take half a minute.
_CODE = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


def engine_version(python: str, packages: List[str]) -> Dict[str, Optional[str]]:
    """The first of the packages that is installed, and its version, or why it is not known; empty without packages."""
    if not packages:
        return {}
    command = [python, "-c", _CODE, *packages]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError as error:
        return {"engine_problem": f"{python} cannot be run: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"engine_problem": f"{python} did not say in {TIMEOUT_S:g} s which engine it has"}
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return {"engine_problem": f"{python} cannot say which engine it has: {said[-1]}"}
    found = result.stdout.split()
    if len(found) != 2:
        return {"engine_problem": f"{python} has no {' or '.join(packages)}"}
    return {"engine_package": found[0], "engine_version": found[1]}
