"""Takes secrets out of a plan that is shown."""

import re

from pdctl.planning.plan import Plan, ProcessPlan

HIDDEN = "***"
_SECRET = re.compile(r"secret|passw|pwd|credential|auth|api[-_]?key|(^|[-_])(keys?|pass|pat)$", re.IGNORECASE)
_TOKEN = re.compile(r"token", re.IGNORECASE)
# Numbers of tokens, and what is about the model's tokens.
_COUNT = re.compile(r"tokeni[sz]er|token[-_]threshold|(^|[-_])(max|min|num)[-_](.*[-_])?tokens?$", re.IGNORECASE)
_PLACE = re.compile(r"[-_](file|path|dir)$", re.IGNORECASE)  # says where a secret is


def redact(plan: Plan) -> Plan:
    """Return the plan with the values of flags and variables that are named like secrets hidden."""
    return plan.model_copy(
        update={"router": _redact(plan.router), "engines": tuple(_redact(engine) for engine in plan.engines)}
    )


def _redact(process: ProcessPlan) -> ProcessPlan:
    env = {name: HIDDEN if _is_secret(name) else value for name, value in process.env.items()}
    return process.model_copy(update={"env": env, "argv": tuple(_shown_argv(process.argv))})


def _shown_argv(argv: tuple[str, ...]) -> list[str]:
    shown, hiding = [], False
    for token in argv:
        if not token.startswith("--"):
            shown.append(HIDDEN if hiding else token)
            continue
        flag, equals, _ = token.partition("=")
        secret = _is_secret(flag)
        shown.append(f"{flag}={HIDDEN}" if secret and equals else token)
        hiding = secret and not equals  # all values up to the next flag
    return shown


def _is_secret(name: str) -> bool:
    if _PLACE.search(name):
        return False
    return _SECRET.search(name) is not None or (_TOKEN.search(name) is not None and _COUNT.search(name) is None)
