"""Where pyverbs comes from: this environment, else Debian's package, which is outside of any virtual environment."""

import importlib
import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from engine.errors import TransferError

_DEBIAN = Path("/usr/lib/python3/dist-packages/pyverbs")
_INSTALL = "apt-get install python3-pyverbs rdma-core"


def make_importable() -> None:
    """Let `import pyverbs` work. Raises TransferError saying what to install."""
    # Objects of a device that has been unplugged can then be destroyed without an error. Read when the library loads.
    os.environ.setdefault("RDMAV_ALLOW_DISASSOC_DESTROY", "1")
    if importlib.util.find_spec("pyverbs") is None:
        _add_debians()
    try:
        importlib.import_module("pyverbs.device")
    except ImportError as error:
        raise TransferError(f"pyverbs does not load ({error}): {_INSTALL}") from None


def _add_debians() -> None:
    """Import this one package from Debian's folder, whose others would mix with those of this environment."""
    if not _DEBIAN.is_dir():
        raise TransferError(f"pyverbs is missing: {_INSTALL}, or pip install pyverbs")
    if not any((_DEBIAN / f"device{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        raise TransferError(
            f"the pyverbs in {_DEBIAN} is for another Python than this one ({sys.version.split()[0]}): "
            "run the engine with Debian's, or pip install pyverbs"
        )
    spec = importlib.util.spec_from_file_location(
        "pyverbs", _DEBIAN / "__init__.py", submodule_search_locations=[str(_DEBIAN)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pyverbs"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
