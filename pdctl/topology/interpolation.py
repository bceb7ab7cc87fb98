"""Puts environment variables into the scalars of a topology file."""

import re
from collections.abc import Mapping

_VARIABLE = re.compile(
    r"""\$(?:
        (?P<dollar>\$)
      | \{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}
      | (?P<broken>\{[^}]*\}?)
    )""",
    re.VERBOSE,
)


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Replace ${NAME}, ${NAME:-default} (used where NAME is unset or empty) and $$; any other "$" stays.

    Raises ValueError for an undefined variable without a default, and for a "${" that is neither form.
    """

    def value_of(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["broken"]:
            raise ValueError(f"'${match['broken']}' is neither ${{NAME}} nor ${{NAME:-default}}; a dollar sign is $$")
        return _lookup(match["name"], match["default"], variables)

    return _VARIABLE.sub(value_of, text)


def _lookup(name: str, default: str | None, variables: Mapping[str, str]) -> str:
    value = variables.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise ValueError(f"variable {name} is not set: set it, or give a default with ${{{name}:-...}}")
    return value
