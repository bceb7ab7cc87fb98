"""Finds profiles: those that come with pdctl, and a user's own, which may extend one of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pdctl.errors import TopologyError
from pdctl.profiles.models import Profile, RouterProfile
from pdctl.validation import describe, nearest, validate
from pdctl.yamlfile import Document, read_yaml

_OF_ITS_OWN = ("name", "description", "extends")  # never taken over from the profile that is extended


def load_profile(name_or_path: str) -> Profile:
    """Load an engine's profile by its name, or a user's by its path (with a slash, or ending in .yaml or .yml)."""
    if problem := engine_problem(name_or_path):
        raise TopologyError(f"engine: {problem}")
    path = _engines().get(name_or_path) or Path(name_or_path).expanduser()
    return validate(Profile, _extended(read_yaml(path)))


def load_router_profile(name_or_path: str) -> RouterProfile:
    """Load the profile of a router that is not pdctl's own, likewise."""
    if problem := router_problem(name_or_path):
        raise TopologyError(f"router.kind: {problem}")
    path = _routers().get(name_or_path) or Path(name_or_path).expanduser()
    return validate(RouterProfile, read_yaml(path))


def profile_text(name_or_path: str) -> str:
    """Return a profile of an engine or a router as YAML, complete with what it extends."""
    path = _routers().get(name_or_path) or _engines().get(name_or_path)
    if path is None and (problem := _problem("profile", name_or_path, [*engine_names(), *router_names()])):
        raise TopologyError(problem)
    data = _extended(read_yaml(path or Path(name_or_path).expanduser())).data
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120).rstrip()


def is_router_file(path: Path) -> bool:
    """Whether a file holds a router's profile: only these have `protocols`."""
    data = read_yaml(path).data
    return isinstance(data, dict) and "protocols" in data


def engine_problem(name_or_path: str) -> str | None:
    """Say why this is no engine: neither a known name nor the form of a path."""
    return _problem("engine", name_or_path, engine_names())


def router_problem(name_or_path: str, *more: str) -> str | None:
    """Say why this is no router's profile; `more`: other names that are known."""
    return _problem("router", name_or_path, [*more, *router_names()])


def engine_names() -> list[str]:
    """The engines that come with pdctl."""
    return list(_engines())


def router_names() -> list[str]:
    """The routers that come with pdctl, beside its own."""
    return list(_routers())


def _extended(document: Document) -> Document:
    """Put the profile over the one that it extends: mappings are joined, all else is replaced, null takes away."""
    data: Any = document.data
    if not isinstance(data, dict) or "extends" not in data:
        return document
    base = data["extends"]
    at = f"{document.path}:{document.line_of(('extends',))}"
    if not isinstance(base, str):
        raise TopologyError(f"{at}: extends: expected the name of an engine, got {describe(base)}")
    if base not in _engines():
        raise TopologyError(f"{at}: extends: unknown engine {base!r}, {nearest(base, engine_names())}")
    below: Any = _extended(read_yaml(_engines()[base])).data
    taken = {key: value for key, value in below.items() if key not in _OF_ITS_OWN}
    own = {key: value for key, value in data.items() if key != "extends"}
    return replace(document, data=_joined(taken, own))


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = dict(below)
    for key, value in above.items():
        old = joined.get(key)
        joined[key] = _joined(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return {key: value for key, value in joined.items() if value is not None}


def _problem(what: str, name_or_path: str, known: list[str]) -> str | None:
    if name_or_path in known or "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return None
    return (
        f"unknown {what} {name_or_path!r}, {nearest(name_or_path, known)} (a profile of your own is given by its path)"
    )


def _engines() -> dict[str, Path]:
    return _named(profiles_folder())


def _routers() -> dict[str, Path]:
    return _named(profiles_folder() / "routers")


def _named(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def profiles_folder() -> Path:
    """Where the profiles are that come with pdctl."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "profiles_data"  # in a wheel; a checkout has the folder at its top
    return installed if installed.is_dir() else package.parent / "profiles"
