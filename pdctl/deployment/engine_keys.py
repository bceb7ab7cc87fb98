"""The API keys that engines want of their clients, where the plan has them."""

from collections.abc import Iterator

from pdctl.deployment.secrets import read_secret
from pdctl.planning.plan import ProcessPlan

HOW_TO_GIVE = "`args: {api-key: ...}`, or VLLM_API_KEY or FD_API_KEY in `env` or `secrets` of its group"
_FLAGS = ("--api-key", "--api-keys")
_VARIABLES = ("VLLM_API_KEY", "FD_API_KEY")


def engine_key(engine: ProcessPlan) -> str:
    """A key that an engine takes; empty if it wants none that the plan knows of. PlanError if a secret is missing."""
    return next(_keys(engine), "").split(",")[0].strip()  # FastDeploy takes several, separated by commas


def _keys(engine: ProcessPlan) -> Iterator[str]:
    argv = engine.argv
    for at, token in reversed(list(enumerate(argv))):  # of a flag that is there twice, the last one holds
        flag, _, value = token.partition("=")
        if flag in _FLAGS and (value or at + 1 < len(argv)):
            yield value or argv[at + 1]
    for name in _VARIABLES:
        if name in engine.secrets:
            yield read_secret(engine, name)
        elif name in engine.env:
            yield engine.env[name]
