"""What is compared, and how its two sides are run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

_ROOT = Path(__file__).parents[2]
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Contender:
    """Something that moves blocks, and the environment in which it does that best."""

    name: str
    module: str
    environment: dict[str, str] = field(default_factory=dict)
    peer: bool = False  # runs in the peers' environment


CONTENDERS = [
    Contender("memcpy", "memcpy_side"),
    Contender("ipc", "pdctl_side", {"TRANSPORT": "ipc"}),
    Contender("tcp", "pdctl_side", {"TRANSPORT": "tcp"}),
    Contender("mooncake", "mooncake_side", {"MC_TCP_ENABLE_CONNECTION_POOL": "1"}, peer=True),
    Contender("nixl", "nixl_side", {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}, peer=True),
]


class Duet:
    """A source and a target that run."""

    def __init__(self, source: "_Side", target: "_Side") -> None:
        self._source = source
        self._target = target

    def push(self, seed: int, block_bytes: int) -> float:
        """Seconds."""
        seconds: float = self._source.ask({"seed": seed, "block_bytes": block_bytes})["seconds"]
        return seconds

    def check(self, seed: int, block_bytes: int) -> None:
        """Raise unless what that push should have moved is there."""
        if not self._target.ask({"seed": seed, "block_bytes": block_bytes})["right"]:
            raise SystemExit("what has arrived is not what was sent")


@contextmanager
def running(contender: Contender, peers_python: Path | None) -> Iterator[Duet]:
    """Start both sides, and end them."""
    python = str(peers_python) if contender.peer else sys.executable
    command = [python, "-m", f"benchmarks.transfer.{contender.module}"]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        stack.enter_context(_shown_on_failure(contender.name, log))
        target = stack.enter_context(_side([*command, "target"], contender.environment, log))
        address = target.hear()["address"]
        source = stack.enter_context(_side([*command, "source", address], contender.environment, log))
        source.hear()
        yield Duet(source, target)


class _Side:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, words: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args[:4]))} has ended")  # type: ignore[index]
        words: dict[str, Any] = json.loads(line)
        return words


@contextmanager
def _side(command: list[str], environment: dict[str, str], log: TextIO) -> Iterator[_Side]:
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        yield _Side(process)
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(_END_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _shown_on_failure(name: str, log: TextIO) -> Iterator[None]:
    try:
        yield
    except BaseException:
        log.seek(0)
        print(f"--- what {name} printed last:\n{log.read()[-3000:]}", file=sys.stderr)
        raise
