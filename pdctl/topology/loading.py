"""Loads a topology file; everything wrong in it is said with file, line and key."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pdctl.errors import TopologyError
from pdctl.topology.checks import find_problems
from pdctl.topology.fields import Secret, safe_name
from pdctl.topology.interpolation import interpolate
from pdctl.topology.models import ROLES, EngineGroup, Host, Topology
from pdctl.validation import Problem, refusal, validate
from pdctl.yamlfile import read_yaml

_PROFILES = (".yaml", ".yml")


def load_topology(path: Path | None, *, name: str | None = None) -> Topology:
    """Load and check a topology; without a path, the embedded default. `name` replaces the file's own.

    Relative paths of a model or profile become absolute, seen from the file's folder.
    """
    topology = _read(path) if path else Topology(prefill=[EngineGroup()], decode=[EngineGroup()])
    if name is None:
        return topology
    try:
        return topology.model_copy(update={"name": safe_name(name)})
    except ValueError as error:
        raise TopologyError(f"name: {error}") from None


def _read(path: Path) -> Topology:
    document = read_yaml(path, substitute=partial(interpolate, variables=os.environ))
    topology = validate(Topology, document)
    topology = topology.model_copy(
        update={
            "model": _located(topology.model, path.parent, (".gguf",), Path.exists),
            "engine": _located(topology.engine, path.parent, _PROFILES, Path.is_file),
            "router": topology.router.model_copy(
                update={
                    "kind": _located(topology.router.kind, path.parent, _PROFILES, Path.is_file),
                    "secrets": _located_secrets(topology.router.secrets, path.parent),
                }
            ),
            **{
                role: [
                    group.model_copy(update={"secrets": _located_secrets(group.secrets, path.parent)})
                    for group in getattr(topology, role)
                ]
                for role in ROLES
            },
            "hosts": {name: _located_host(host, path.parent) for name, host in topology.hosts.items()},
        }
    )
    problems = [*find_problems(topology), *_missing_model(topology)]
    if problems:
        raise refusal(document, problems)
    return topology


def _located(value: str, folder: Path, suffixes: tuple[str, ...], exists: Callable[[Path], bool]) -> str:
    """Make what is, or looks like, a path absolute; leave names and hub ids."""
    if value.startswith("~"):
        return str(Path(value).expanduser())
    path = (folder / value).absolute()
    looks_like_path = value.startswith(("./", "../", "/")) or value.endswith(suffixes)
    return os.path.normpath(path) if looks_like_path or exists(path) else value


def _located_host(host: Host, folder: Path) -> Host:
    """An interpreter on this machine can be given relative to the topology file."""
    if host.ssh is not None or host.python is None or "/" not in host.python:
        return host
    return host.model_copy(update={"python": _located(host.python, folder, (), Path.exists)})


def _located_secrets(secrets: dict[str, Secret], folder: Path) -> dict[str, Secret]:
    return {
        name: Secret(file=os.path.normpath((folder / Path(secret.file).expanduser()).absolute()))
        if secret.file
        else secret
        for name, secret in secrets.items()
    }


def _missing_model(topology: Topology) -> list[Problem]:
    used = {host for _, _, group in topology.groups() for host in group.nodes}
    needed_here = any(name in used and host.ssh is None for name, host in topology.hosts.items())
    if not needed_here or not topology.model.startswith("/") or Path(topology.model).exists():
        return []
    return [Problem(("model",), f"there is no file or folder {topology.model}")]
