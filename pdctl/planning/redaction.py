"""Takes secrets out of a plan that is shown."""

import re

from pdctl.planning.plan import Plan, ProcessPlan

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(^|[-_])(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def redact(plan: Plan) -> Plan:
    """Return the plan with the values of flags and variables that are named like secrets hidden."""
    return plan.model_copy(
        update={"router": _redact(plan.router), "engines": tuple(_redact(engine) for engine in plan.engines)}
    )


def _redact(process: ProcessPlan) -> ProcessPlan:
    env = {name: HIDDEN if _SECRET_NAME.search(name) else value for name, value in process.env.items()}
    return process.model_copy(update={"env": env, "argv": tuple(_shown_argv(process.argv))})


def _shown_argv(argv: tuple[str, ...]) -> list[str]:
    shown, hide_next = [], False
    for token in argv:
        flag, equals, _ = token.partition("=")
        secret = flag.startswith("--") and _SECRET_NAME.search(flag) is not None
        if hide_next and not token.startswith("--"):
            shown.append(HIDDEN)
        else:
            shown.append(f"{flag}={HIDDEN}" if secret and equals else token)
        hide_next = secret and not equals
    return shown
