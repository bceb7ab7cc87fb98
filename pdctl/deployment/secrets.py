"""The secrets of processes: read here when they are started, sent to the agent, and kept nowhere else."""

import os
from pathlib import Path

from pdctl.errors import PlanError
from pdctl.planning.plan import ProcessPlan
from pdctl.topology.fields import Secret


def read_secrets(process: ProcessPlan) -> dict[str, str]:
    """The variables of a process whose values the plan does not have; raises PlanError where one cannot be read."""
    return {name: read_secret(process, name) for name in process.secrets}


def read_secret(process: ProcessPlan, name: str) -> str:
    """One of them."""
    return _read(process.name, name, process.secrets[name])


def _read(process: str, name: str, secret: Secret) -> str:
    if secret.env is not None:
        value = os.environ.get(secret.env)
        if not value:
            raise PlanError(f"{process}: secret {name}: the variable {secret.env} is not set here: set it")
        return value
    try:
        return Path(secret.file or "").expanduser().read_text().strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PlanError(f"{process}: secret {name}: {secret.file} cannot be read: {why}") from None
