"""Command lines, environments and ports, looked at as strictly as a plan needs to be checked.

What is wrong with flags or environment ends the process with 2 and argparse's message, a taken port with 1 and
uvicorn's.
"""

import argparse
import errno
import os
import re
import socket
from collections.abc import Callable, Sequence

from standin_faults import EndError, print_error

_NIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_UCX_DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(:[1-9][0-9]*)?")


class Flags(argparse.ArgumentParser):
    """An engine's command line; no flag may be shortened."""

    def __init__(self, module: str) -> None:
        super().__init__(prog=f"python -m {module}", allow_abbrev=False)

    def accept(self, type: Callable[[str], object], *names: str) -> None:
        """Take flags whose values only have to be of a type."""
        for name in names:
            self.add_argument(name, type=type)

    def switch(self, *names: str) -> None:
        """Take flags without a value."""
        for name in names:
            self.add_argument(name, action="store_true")

    def check_count(self, flag: str, given: Sequence[object] | None, count: int, reason: str) -> None:
        """Refuse a list of another length, if it is given."""
        if given is not None and len(given) != count:
            self.error(f"argument {flag}: {len(given)} given, but {count} needed ({reason})")

    def check_gpus(self, needed: int, base: int = 0) -> list[str]:
        """The GPUs that the process may use: as many as it needs, from the one with the number `base`."""
        text = os.environ.get("CUDA_VISIBLE_DEVICES")
        if text is None:
            self.error("CUDA_VISIBLE_DEVICES is not set: engines of one host would share GPUs")
        gpus = [gpu.strip() for gpu in text.split(",")]
        if "" in gpus or len(set(gpus)) != len(gpus):
            self.error(f"CUDA_VISIBLE_DEVICES={text}: not a list of different GPUs")
        if len(gpus) < base + needed or (base == 0 and len(gpus) != needed):
            self.error(f"CUDA_VISIBLE_DEVICES={text}: {len(gpus)} GPUs, but {base + needed} needed")
        return gpus[base : base + needed]

    def check_nics(self, variable: str, *, with_ports: bool = False) -> None:
        """Refuse an environment variable that is set and is no list of NICs, or of UCX's devices."""
        text = os.environ.get(variable)
        pattern = _UCX_DEVICE if with_ports else _NIC
        if text is not None and not _are_all(pattern, text.split(",")):
            self.error(f"{variable}={text}: not a list of {'UCX devices' if with_ports else 'NICs'}")

    def check_number(self, variable: str, default: float) -> float:
        """A number of the environment."""
        text = os.environ.get(variable)
        try:
            return default if text is None else float(text)
        except ValueError:
            self.error(f"{variable}={text}: not a number")


def are_nics(names: Sequence[str]) -> bool:
    """Whether these are names of RDMA devices, none twice."""
    return _are_all(_NIC, names)


def _are_all(pattern: re.Pattern[str], names: Sequence[str]) -> bool:
    return len(set(names)) == len(names) and all(pattern.fullmatch(name) for name in names)


def port(text: str) -> int:
    """A port that can be bound."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def ports(text: str) -> list[int]:
    """Ports, separated by commas, none twice."""
    found = [port(part) for part in text.split(",")]
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a port twice")
    return found


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """`host:port`, with or without http:// before it."""
    host, colon, number = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return host.strip("[]"), port(number)


def bind(host: str, number: int, what: str) -> socket.socket:
    """Listen on a port. EndError if another process does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, number), family=family, backlog=1024)
    except OSError as error:
        said = f"[Errno {error.errno}]"
        reason = os.strerror(error.errno or errno.EIO).lower()
        at = f"error while attempting to bind on address ('{host}', {number})"
        print_error(f"ERROR:    {said} {at}: {said} {reason} ({what})")
        raise EndError from None
