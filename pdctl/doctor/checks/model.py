"""Whether each host has the model, whole, and the same."""

from collections.abc import Iterator
from typing import NamedTuple

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.system import Model
from pdctl.doctor.units import counted, size

_SHOWN = 3  # files of a list


class _Holder(NamedTuple):
    """A host, and what it has of the model."""

    host: HostFacts
    model: Model


def check_model(facts: Facts) -> Iterator[Finding]:
    """A model that is not there, not whole, or another than that of the first host that has it, is an error."""
    holders = [_Holder(host, model) for host in facts.engine_hosts.values() if (model := host.system.model)]
    holders = [holder for holder in holders if holder.model.kind != "name"]  # the engine finds it
    whole = [holder for holder in holders if _is_whole(holder.model)]
    first = whole[0] if whole else None
    for holder in holders:
        yield _judge(holder, first)


def _judge(holder: _Holder, first: _Holder | None) -> Finding:
    host, model = holder
    if model.kind == "hub" and not _is_whole(model):
        text = f"not whole in {model.path}: the engine fetches it from the hub; {size(model.free_bytes)} free there"
        return Finding("warning", host.name, "model", text, f"hf download {_hub_id(model)}")
    if not model.exists:
        return Finding("error", host.name, "model", f"there is no {model.path}", _copy(first, holder))
    if model.missing:
        return Finding(
            "error", host.name, "model", f"{model.path} lacks {_listed(model.missing)}", _copy(first, holder)
        )
    if model.pointers:
        text = f"in {model.path} Git LFS has not fetched {_listed(model.pointers)}"
        return Finding("error", host.name, "model", text, f"git -C {model.path} lfs pull")
    if first and (differing := _differing(first.model, model)):
        text = f"{model.path} is not what host {first.host.name} has: {differing}"
        return Finding("error", host.name, "model", text, _copy(first, holder))
    total = sum(file.size for file in model.files.values())
    return Finding("ok", host.name, "model", f"{counted(len(model.files), 'file')}, {size(total)}: {model.path}")


def _is_whole(model: Model) -> bool:
    return model.exists and not model.missing and not model.pointers


def _differing(first: Model, other: Model) -> str:
    """In what it differs from the first; empty where it does not, as far as was looked."""
    if first.commit != other.commit:
        return f"commit {other.commit or 'unknown'} instead of {first.commit or 'unknown'}"
    names = sorted(first.files.keys() | other.files.keys())
    differing = [name for name in names if first.files.get(name) != other.files.get(name)]
    return _listed(differing)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _hub_id(model: Model) -> str:
    folder = next(part for part in model.path.split("/") if part.startswith("models--"))
    return folder.removeprefix("models--").replace("--", "/")


def _copy(source: _Holder | None, target: _Holder) -> str:
    """The command that brings the model from a host that has it."""
    if source is None:
        return "copy it there, or give another `model` in the topology file"
    path = source.model.path + ("" if source.model.path.endswith(".gguf") else "/")
    start = f"ssh {source.host.ssh} " if source.host.ssh and target.host.ssh else ""
    if start:
        return f"{start}rsync -a --checksum {path} {target.host.address}:{path}"
    there, here = (f"{holder.host.ssh}:" if holder.host.ssh else "" for holder in (source, target))
    return f"rsync -a --checksum {there}{path} {here}{path}"
