"""The values of a topology's keys, and what is wrong with those that are none."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from pdctl.validation import describe

HERE = "here"  # what this machine is called where the topology gives it no other name
EVERY_ADDRESS = ("0.0.0.0", "::")  # what a process that listens on all of a host's addresses binds

Scalar = bool | int | float | str

_SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def is_safe_name(value: str) -> bool:
    """Whether a name can be a folder's."""
    return re.fullmatch(_SAFE_NAME, value) is not None


def safe_name(value: str) -> str:
    """Return a name that can be a folder's; raises ValueError for another."""
    if not is_safe_name(value):
        raise ValueError(
            f"expected 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit, got {describe(value)}"
        )
    return value


def whole_number(value: object) -> object:
    """Return a number; raises ValueError for true and false, which pydantic would count as numbers."""
    if isinstance(value, bool):
        raise ValueError(f"expected a whole number, got {describe(value)}")
    return value


def _flag(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(f"expected a flag without its leading dashes, such as max-model-len, got {describe(value)}")
    return value


def _argument(value: object) -> object:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Scalar) for item in items):
        raise ValueError(f"expected text, a number, true, false or a list of these, got {describe(value)}")
    return value


def groups_of(value: object) -> object:
    """Return groups of engines as a list, whatever short form they have."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [{"replicas": value}]
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"expected a number of replicas, a mapping or a list of mappings, got {describe(value)}")
    return value


def gpus_of(value: object) -> object:
    """Return a list of GPUs; None for auto."""
    if value is None or value == "auto":
        return None
    if not isinstance(value, list):
        raise ValueError(f"expected auto or a list of numbers, got {describe(value)}")
    return value


def host_of(value: object) -> object:
    """Return a host as a mapping."""
    if value == "local":
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"expected local or a mapping with ssh, got {describe(value)}")
    return value


def _address(value: str) -> str:
    if ":" in value and value not in EVERY_ADDRESS:
        raise ValueError(f"expected an IPv4 address or a host's name, without a port, got {describe(value)}")
    return value


class Section(BaseModel):
    """A mapping in a topology."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Secret(Section):
    """Where a variable's value is found when the process is started: it is in no file of pdctl's."""

    model_config = ConfigDict(frozen=True)

    env: str | None = Field(default=None, min_length=1, description="A variable of the shell that runs `pdctl up`.")
    file: str | None = Field(
        default=None, min_length=1, description="A file on the machine that runs `pdctl up`, relative to this file."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env or file")
        return self


WholeNumber = Annotated[int, BeforeValidator(whole_number)]
SafeName = Annotated[str, AfterValidator(safe_name), WithJsonSchema({"type": "string", "pattern": f"^{_SAFE_NAME}$"})]
Address = Annotated[str, Field(min_length=1), AfterValidator(_address)]
Flag = Annotated[str, BeforeValidator(_flag)]
Argument = Annotated[Scalar | list[Scalar], BeforeValidator(_argument)]
