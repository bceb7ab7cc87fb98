"""The builtin engine with a step that does what a test says, as a profile of the user's own."""

from pathlib import Path

import yaml

BUILTIN = Path(__file__).parents[2] / "profiles" / "builtin.yaml"

# `before_step(number, batch)` is called before each step of an engine of the role; 1 and 2 are those of the warm-up.
_MAIN = """
import itertools, os, sys, threading
from engine.__main__ import main
from engine.runner.runner import TorchRunner

def before_step(number, batch):
    {action}

def execute(self, batch, original=TorchRunner.execute, numbers=itertools.count(1)):
    before_step(next(numbers), batch)
    return original(self, batch)

if sys.argv[sys.argv.index("--splitwise-role") + 1] == "{role}":
    TorchRunner.execute = execute
sys.exit(main())
"""
FOREVER = "threading.Event().wait()"


def wrapped_engine(folder: Path, role: str, action: str) -> str:
    """Write a profile whose engines of a role run the statement ``action`` before each step; return its path."""
    script = folder / "wrapped_engine_main.py"
    script.write_text(_MAIN.format(role=role, action=action))
    profile = yaml.safe_load(BUILTIN.read_text())
    module = profile["command"].index("-m")
    profile["command"][module : module + 2] = [str(script)]
    path = folder / "wrapped.yaml"
    path.write_text(yaml.safe_dump(profile | {"name": "wrapped"}))
    return str(path)
