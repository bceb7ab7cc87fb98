"""What a process of ours is for its first milliseconds: ties its life to the agent's, then becomes the real program.

    python -I -S shim.py PARENT_PID CWD PROGRAM [ARG...]

It is an executable of its own because PR_SET_PDEATHSIG must be set in the child, and running Python code between fork
and exec in a process that has threads can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127  # what a shell answers for a command it cannot run


def main(parent: int, cwd: str, argv: list[str]) -> None:
    """Never returns."""
    os.setsid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        _fail("prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # an ignored signal would stay ignored in the program
    try:
        if cwd:
            os.chdir(cwd)
        os.execvp(argv[0], argv)
    except OSError as error:
        _fail(f"cannot run {argv[0]}: {error.strerror}")


def _fail(message: str) -> None:
    os.write(2, f"pdctl: {message}\n".encode())
    os._exit(_NOT_FOUND)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
