"""The agent as one file, for hosts that have nothing of ours: a zip archive that Python runs."""

import hashlib
import io
import zipfile
from functools import cache
from importlib.resources import files
from typing import NamedTuple

# Unpacked once beside itself: Python keeps what it has compiled only of files in folders. That is done here, once for
# all: when the disk has become full Python would keep a part of it, and never import that module again.
_MAIN = """\
import os, shutil, sys, zipfile
sys.dont_write_bytecode = True
archive = sys.path[0]
folder = archive.rpartition(".")[0]
if not os.path.isdir(folder):
    import compileall, marshal, pathlib
    temporary = f"{folder}.{os.getpid()}"
    try:
        zipfile.ZipFile(archive).extractall(temporary)
        compileall.compile_dir(temporary, quiet=2, stripdir=temporary, prependdir=folder)
        for compiled in pathlib.Path(temporary).rglob("*.pyc"):
            try:
                marshal.loads(compiled.read_bytes()[16:])
            except (EOFError, ValueError, TypeError):
                compiled.unlink()
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not os.path.isdir(folder):  # else another was faster
            sys.exit(f"{folder} cannot be made: {error.strerror}")
sys.path.insert(0, folder)
from pdctl.agent.__main__ import main
sys.exit(main())
"""
_TIME = (1980, 1, 1, 0, 0, 0)  # equal sources give an equal archive


class Archive(NamedTuple):
    """The archive and the name under which hosts keep it."""

    name: str
    content: bytes


@cache
def agent_archive() -> Archive:
    """Pack `pdctl/agent`. The name has the content's hash: another version is another file."""
    sources = {"__main__.py": _MAIN, "pdctl/__init__.py": ""}
    for file in files("pdctl.agent").iterdir():
        if file.name.endswith(".py"):
            sources[f"pdctl/agent/{file.name}"] = file.read_text()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in sorted(sources.items()):
            archive.writestr(zipfile.ZipInfo(path, _TIME), text, zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return Archive(f"agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz", content)
