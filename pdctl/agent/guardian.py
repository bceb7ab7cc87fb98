"""Guardian and agent: two processes, so that whichever is killed, the other ends what runs.

The guardian does nothing but wait. When the agent ends, for whatever reason, everything that it started is a descendant
of the guardian (a subreaper), and is killed. When the guardian is killed, the kernel sends the agent SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, List

from pdctl.agent.kill import kill_until_gone, own_descendants
from pdctl.agent.lock import take_lock
from pdctl.agent.paths import AgentError, prepare_folder, remove_secrets, socket_path
from pdctl.agent.procfs import Stat
from pdctl.agent.run_record import begin_run

LISTENING = "listening"
KILL_S = 30.0
LOCK_S = 1.0  # for a sweep that is looking at the folder
LOG_BYTES = 1024 * 1024  # of agent.log, which has a few lines for each start
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def serve_detached(folder: Path, run_id: str) -> None:
    """Start guardian and agent in the background; returns when the agent listens, raises AgentError if it does not."""
    prepare_folder(folder)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _exit_with(_become_daemon, folder, run_id, write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.readline().strip()
    if answer != LISTENING:
        os.waitpid(pid, 0)
        raise AgentError(answer or f"the agent ended while it started: see {folder / 'agent.log'}")


def serve(folder: Path, run_id: str, tell: Callable[[str], None]) -> int:
    """Be the guardian until the agent has ended and nothing of it lives; returns the exit code.

    ``tell`` is called once, in the agent: with LISTENING, or with the reason why it cannot listen.
    """
    prepare_folder(folder)
    _hold_lock(folder)
    begin_run(folder, run_id)
    (folder / "pids.json").unlink(missing_ok=True)  # of the last run
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as a launcher may have left it, no exit could be read
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guardian = os.getpid()
    agent = os.fork()
    if agent == 0:
        _exit_with(_become_agent, guardian, folder, run_id, tell)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(agent, signal.SIGTERM))
    _, status = os.waitpid(agent, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    left = kill_until_gone(_reap_and_find, KILL_S)
    (folder / "agent.json").unlink(missing_ok=True)
    remove_secrets(folder)
    socket_path(run_id).unlink(missing_ok=True)
    _say(f"the agent ended with {os.waitstatus_to_exitcode(status)}; {len(left)} processes left")
    return 1 if left else 0


def _become_daemon(folder: Path, run_id: str, answer: int) -> int:
    os.setsid()
    _redirect(folder / "agent.log")

    def tell(text: str) -> None:
        os.write(answer, text.encode() + b"\n")
        os.close(answer)

    try:
        return serve(folder, run_id, tell)
    except (AgentError, OSError) as error:
        tell(str(error))
        return 1


def _become_agent(guardian: int, folder: Path, run_id: str, tell: Callable[[str], None]) -> int:
    from pdctl.agent.server import run_agent  # asyncio is not for the guardian

    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guardian:  # it died before the line above
        return 1
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    run_agent(folder, run_id, tell)
    return 0


def _reap_and_find() -> List[Stat]:
    """Our descendants; those that have ended are reaped, so that they do not stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return []  # no child: no descendant either, as every orphan of ours becomes our child
    return own_descendants()


def _hold_lock(folder: Path) -> None:
    """Held by guardian and agent until both have ended: nobody closes it. Processes they start do not inherit it."""
    if take_lock(folder, LOCK_S) is None:
        raise AgentError(f"another agent serves {folder}")


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if os.fstat(file).st_size > LOG_BYTES:
        os.ftruncate(file, 0)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(file)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise AgentError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _exit_with(main: Callable[..., int], *arguments: object) -> None:
    """End this forked process with what ``main`` returns, past the caller's cleanup."""
    code = 1
    try:
        code = main(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} guardian {text}\n")
    sys.stderr.flush()
