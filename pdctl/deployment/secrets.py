"""The secrets of processes: read here when they are started, sent to the agent, and kept nowhere else."""

import os
from pathlib import Path

from pdctl.errors import PlanError
from pdctl.planning.plan import ProcessPlan
from pdctl.topology.fields import Secret


def read_secrets(process: ProcessPlan) -> dict[str, str]:
    """The variables of a process whose values the plan does not have; raises PlanError where one cannot be read."""
    return {name: _read(process.name, name, secret) for name, secret in process.secrets.items()}


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
