"""Command lines and variables with placeholders, some of which have no value everywhere."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

# What a command or an environment value may hold, in braces; {port.<purpose>} besides.
PLACEHOLDERS = (
    *("python", "bin", "model", "role", "name", "work_dir", "router", "host", "advertise_host", "tp", "threads"),
)
# These may have no value: an argument or variable that holds one is left out then.
OPTIONAL_PLACEHOLDERS = (
    *("gpus", "nics", "ucx_net_devices", "loopback"),
    *("dp", "dp_local", "dp_start", "nodes", "tp_nodes", "node_rank", "head"),
)
# The same of a router that has a profile.
ROUTER_PLACEHOLDERS = ("python", "bin", "model", "name", "work_dir", "host", "advertise_host")
_PURPOSE = "[a-z0-9_-]+"
_PLACEHOLDER = re.compile(rf"\{{([a-z_]+(?:\.{_PURPOSE})?)\}}")
_NEWEST = "9999"  # the version of an engine whose version is not known


def check_range(versions: str) -> str:
    """Return a range of versions as it is; raises ValueError for what is none."""
    try:
        SpecifierSet(versions)
    except InvalidSpecifier:
        raise ValueError(f"expected versions such as '>=0.20,<0.30', got {versions!r}") from None
    return versions


class Section(BaseModel):
    """A mapping in a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Template(Section):
    """Texts that belong together, for some versions of the engine or for all."""

    texts: tuple[str, ...] = Field(min_length=1)
    versions: str = ""  # as in ">=0.20,<0.30"

    _is_range = field_validator("versions")(check_range)

    def is_for(self, version: str | None) -> bool:
        """Whether that version of the engine has it; an unknown one counts as the newest."""
        return in_range(version, self.versions)

    @classmethod
    def parse(cls, value: object) -> object:
        """Read the short forms too: a text, or a list of them."""
        if isinstance(value, dict):
            return {"texts": _listed(value.get("args", value.get("value"))), **_without(value, "args", "value")}
        return value if isinstance(value, cls) else {"texts": _listed(value)}

    def filled(self, values: Mapping[str, str]) -> list[str]:
        """Return the texts with their placeholders replaced; none of them where one has no value."""
        return fill(self.texts, values)

    def placeholders(self) -> list[str]:
        """Return those that its texts hold."""
        return placeholders(*self.texts)

    def lacks(self, values: Iterable[str]) -> bool:
        """Whether one of its placeholders, ports aside, is not among these."""
        return any(not name.startswith("port.") and name not in values for name in self.placeholders())


# An argument, or several that are left out together.
Arguments = tuple[Annotated[Template, BeforeValidator(Template.parse)], ...]
Environment = dict[str, Annotated[Template, BeforeValidator(Template.parse)]]


def in_range(version: str | None, versions: str) -> bool:
    """Whether a version lies in a range; an unknown one counts as the newest."""
    return SpecifierSet(versions).contains(Version(version or _NEWEST), prereleases=True)


def fill(templates: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Replace the placeholders of templates that belong together; nothing is left of them where one has no value."""
    if not values.keys() >= set(placeholders(*templates)):
        return []
    return [_PLACEHOLDER.sub(lambda match: values[match[1]], template) for template in templates]


def placeholders(*texts: str) -> list[str]:
    """Return the names in braces that have the form of placeholders."""
    return [name for text in texts for name in _PLACEHOLDER.findall(text)]


def _listed(value: Any) -> list[Any] | tuple[Any, ...]:  # noqa: ANN401 what a user wrote
    return value if isinstance(value, list | tuple) else [value]


def _without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}
