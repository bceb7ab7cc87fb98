"""Other numbers of engines in a topology that is deployed."""

from collections.abc import Mapping, Sequence

from pdctl.errors import TopologyError
from pdctl.profiles import EngineRole
from pdctl.topology.checks import find_problems
from pdctl.topology.models import EngineGroup, Topology
from pdctl.yamlfile import show_key

Place = tuple[EngineRole, int | None]  # a role, or one group of it


def resize(topology: Topology, counts: Mapping[Place, int]) -> Topology:
    """Return the topology with that many engines. A role's number is that of all its groups; its last one changes.

    Raises TopologyError.
    """
    for (role, index), count in counts.items():
        groups = _groups(topology, role, index)
        changed = len(groups) - 1 if index is None else index
        others = sum(group.replicas for group in groups) - groups[changed].replicas if index is None else 0
        if count < others:
            raise TopologyError(
                f"{role}={count}: its groups before the last one have {others} engines: give the number of one group, "
                f"such as {role}[0]={count}"
            )
        groups[changed] = _with_replicas(f"{role}[{changed}]", groups[changed], count - others)
        topology = topology.model_copy(update={role: groups})
    return _checked(topology)


def turn(topology: Topology, role: EngineRole, index: int, gpus: Sequence[int], into: EngineRole) -> Topology:
    """Return the topology in which an engine of a group is one of another role: of a group alike, else of a new one.

    `gpus`: what the engine has on each of its hosts. Raises TopologyError.
    """
    groups, others = _groups(topology, role, index), list(getattr(topology, into))
    group = groups[index]
    left = None if group.gpus is None else [gpu for gpu in group.gpus if gpu not in gpus]
    groups[index] = group.model_copy(update={"replicas": group.replicas - 1, "gpus": left})
    alike = [
        number
        for number, other in enumerate(others)
        if (other.nodes, other.tp, other.dp) == (group.nodes, group.tp, group.dp)
        and (other.gpus is None) == (group.gpus is None)
    ]
    if alike:
        other = others[alike[-1]]
        more = None if other.gpus is None else [*other.gpus, *gpus]
        others[alike[-1]] = other.model_copy(update={"replicas": other.replicas + 1, "gpus": more})
    else:
        own = None if group.gpus is None else list(gpus)
        others.append(group.model_copy(update={"replicas": 1, "gpus": own}))
    return _checked(topology.model_copy(update={role: groups, into: others}))


def with_one_more(topology: Topology, role: EngineRole, index: int) -> Topology | None:
    """Return the topology with another engine in a group; None where the group is not there, or lists its GPUs."""
    groups = list(getattr(topology, role))
    if index >= len(groups) or groups[index].gpus is not None:
        return None
    groups[index] = groups[index].model_copy(update={"replicas": groups[index].replicas + 1})
    return topology.model_copy(update={role: groups})


def _groups(topology: Topology, role: EngineRole, index: int | None) -> list[EngineGroup]:
    groups = list(getattr(topology, role))
    if not groups:
        known = ", ".join(dict.fromkeys(role for role, _, _ in topology.groups()))
        raise TopologyError(f"{role}: the deployment has no such role, only {known}")
    if index is not None and index >= len(groups):
        raise TopologyError(f"{role}[{index}]: the role has {len(groups)} group(s), counted from 0")
    return groups


def _with_replicas(key: str, group: EngineGroup, count: int) -> EngineGroup:
    if group.gpus is None or not group.replicas:
        return group.model_copy(update={"replicas": count})
    if count > group.replicas:
        raise TopologyError(
            f"{key}.gpus: it names the GPUs of {group.replicas} engine(s), and {count} are wanted: name more of them "
            "in the topology file, and `pdctl up` it again"
        )
    share = len(group.gpus) // group.replicas
    return group.model_copy(update={"replicas": count, "gpus": group.gpus[: count * share]})


def _checked(topology: Topology) -> Topology:
    problems = [f"{show_key(problem.key)}: {problem.text}" for problem in find_problems(topology)]
    if problems:
        raise TopologyError(problems[0], detail="\n".join(problems[1:]))
    return topology
