"""Starting a process: two pipes, a tagged environment, and the exec shim."""

from __future__ import annotations

import os
import pkgutil
import sys
from typing import Dict, List, NamedTuple, Optional

from pdctl.agent.procfs import PROCESS_TAG, RUN_TAG

NOTIFY_FD = "PDCTL_NOTIFY_FD"  # as in pdctl/notify.py, which needs a newer Python than the agent may have
_SHIM = (pkgutil.get_data("pdctl.agent", "shim.py") or b"").decode()  # the agent may run from an archive


class Spawned(NamedTuple):
    """A process just started; both file descriptors are the agent's ends, for non-blocking reading."""

    pid: int
    output: int  # its stdout and stderr
    notices: int  # what it writes to PDCTL_NOTIFY_FD


def spawn(argv: List[str], env: Dict[str, str], cwd: Optional[str]) -> Spawned:
    """Start ``argv`` in a session of its own; the kernel kills it when this process ends.

    To be called in the main thread only: PR_SET_PDEATHSIG fires when the *thread* that started the child ends.
    """
    output, output_write = os.pipe()
    notices, notices_write = os.pipe()
    shim = [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), cwd or "", *argv]
    try:
        os.set_inheritable(notices_write, True)
        pid = os.posix_spawn(
            sys.executable,
            shim,
            {**env, NOTIFY_FD: str(notices_write)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output_write, 1),
                (os.POSIX_SPAWN_DUP2, output_write, 2),
            ],
            setsigmask=[],
        )
    except BaseException:
        os.close(output)
        os.close(notices)
        raise
    finally:
        os.close(output_write)
        os.close(notices_write)
    os.set_blocking(output, False)
    os.set_blocking(notices, False)
    return Spawned(pid, output, notices)


def child_environment(run_id: str, name: str, extra: Dict[str, str]) -> Dict[str, str]:
    """The agent's environment with ``extra`` and the tags. Python programs are told to write their lines at once."""
    own = {key: value for key, value in os.environ.items() if key != NOTIFY_FD}
    return {**own, "PYTHONUNBUFFERED": "1", **extra, RUN_TAG: run_id, PROCESS_TAG: name}
