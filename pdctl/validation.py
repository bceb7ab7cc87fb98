"""Says what is wrong in a file in the user's words: its line, the key, what was expected, and the nearest right one."""

from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pdctl.errors import TopologyError
from pdctl.yamlfile import Document, Key, show_key

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "literal_error": "one of {expected}",
}
_LIMITS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} item(s)",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must match {pattern}",
}


class Problem(NamedTuple):
    """One thing that is wrong at a key."""

    key: Key
    text: str


def validate(model: type[Model], document: Document) -> Model:
    """Make the model of a document, or raise TopologyError: the first problem, with the others as its detail."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = [Problem(one["loc"], _explain(model, one)) for one in error.errors()]
        raise refusal(document, problems) from None


def refusal(document: Document, problems: list[Problem]) -> TopologyError:
    """Make one error of all problems, in the order of their lines."""
    written = [Problem(_written(document, problem.key), problem.text) for problem in problems]
    written.sort(key=lambda problem: document.line_of(problem.key))
    first, *others = [_show(document, problem) for problem in written]
    return TopologyError(first, detail="\n".join(others))


def nearest(wrong: str, known: list[str]) -> str:
    """Say which known name was probably meant, or which ones there are."""
    matches = get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(known)}"


def describe(value: object) -> str:
    """Name a value of a file with its type."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"text {value!r}"
    return "a list" if isinstance(value, list) else "a mapping"


def _show(document: Document, problem: Problem) -> str:
    shown = f"{show_key(problem.key)}: " if problem.key else ""
    return f"{document.path}:{document.line_of(problem.key)}: {shown}{problem.text}"


def _written(document: Document, location: Key) -> Key:
    """Return the key as the user wrote it: a short form has no list around it, and "[key]" is pydantic's own."""
    key: Key = ()
    for part in location:
        if part != "[key]" and (isinstance(part, str) or (*key, part) in document.lines):
            key = (*key, part)
    return key


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key, {nearest(str(error['loc'][-1]), _keys_at(model, error['loc'][:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind in _LIMITS:
        return f"{_LIMITS[kind].format(**context)}, got {describe(value)}"
    if kind == "value_error":
        return str(context["error"])
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{error['msg']}, got {describe(value)}"
    return f"expected {expected.format(**context)}, got {describe(value)}"


def _keys_at(model: type[BaseModel], location: Key) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        model = (field and _model_in(field.annotation)) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
