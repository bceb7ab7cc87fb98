"""Commands as documents have them, and as plans do: variables, words, flags with their values."""

import json
import shlex
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.user_args import is_flag

GOLDEN = Path(__file__).with_name("golden")


class Command(NamedTuple):
    """A command line, apart."""

    env: set[str]  # "NAME=value"
    words: list[str]  # before the first flag, without an interpreter
    flags: list[tuple[str, ...]]  # each with its values


def read_command(text: str) -> Command:
    """Read a line for a shell."""
    tokens = shlex.split(text)
    env = list(takewhile(lambda token: "=" in token, tokens))
    return _command(set(env), tokens[len(env) :])


def command_of(process: ProcessPlan) -> Command:
    """What a plan runs."""
    return _command({f"{name}={value}" for name, value in process.env.items()}, list(process.argv))


def missing(process: ProcessPlan, documented: str) -> list[object]:
    """What a document says of a process and the plan does not."""
    planned, wanted = command_of(process), read_command(documented)
    lacking: list[object] = [
        *sorted(wanted.env - planned.env),
        *(flag for flag in wanted.flags if flag not in planned.flags),
    ]
    return lacking if planned.words == wanted.words else [wanted.words, *lacking]


def file_text(plan: Plan) -> str:
    """A plan as the golden files have it."""
    return "\n".join(map(_text_of, plan.processes))


def _command(env: set[str], tokens: list[str]) -> Command:
    """`python -m module` counts as words; a program is called by its name alone, unless a document gives its path."""
    flags: list[tuple[str, ...]] = []
    if "-m" in tokens[:3]:
        at = tokens.index("-m")
        words, tokens = tokens[at : at + 2], tokens[at + 2 :]
    else:
        words, tokens = [PurePosixPath(tokens[0]).name], tokens[1:]
    for token in tokens:
        if is_flag(token):
            flags.append((token,))
        elif flags:
            flags[-1] = (*flags[-1], token)
        else:
            words.append(token)
    return Command(env, words, [one for flag in flags for one in _with_keys(*flag)])


def _with_keys(flag: str, *values: str) -> list[tuple[str, ...]]:
    """A flag, or one for each key where its value is JSON."""
    if len(values) != 1 or not values[0].startswith("{"):
        return [(flag, *values)]
    return [(f"{flag}.{key}", str(value)) for key, value in json.loads(values[0]).items()]


def _text_of(process: ProcessPlan) -> str:
    variables = [f"{name}={value}" for name, value in process.env.items()]
    ports = ", ".join(f"{purpose} {port}" for purpose, port in process.ports.items())
    return (
        f"{process.name} on {process.host} at {process.address} ({ports})\n{shlex.join([*variables, *process.argv])}\n"
    )
