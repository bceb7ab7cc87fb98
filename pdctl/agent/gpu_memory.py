"""Which processes hold memory of GPUs: a driver may keep that of a process for a while after its end."""

from __future__ import annotations

import shutil
from typing import Iterable, List

from pdctl.agent.probe import ask_nvidia_smi
from pdctl.agent.procfs import Identity, read_stat


def still_held(ended: Iterable[Identity]) -> List[int]:
    """The pids of processes that have ended, and whose memory the driver has not taken back. Blocks.

    Raises OSError or ValueError where nvidia-smi is there and does not say.
    """
    pids = {identity.pid for identity in ended}
    if not pids or shutil.which("nvidia-smi") is None:
        return []
    users = {int(line) for line in ask_nvidia_smi("compute-apps", ["pid"])}
    return sorted(pid for pid in pids & users if read_stat(pid) is None)  # one that lives is another by now
