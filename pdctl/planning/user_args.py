"""The flags that users give, put into command lines."""

import re

from pdctl.topology.fields import Argument

_NUMBER = re.compile(r"-[0-9.]+(e[-+]?[0-9]+)?")  # a value, although it begins as a flag does


def with_args(argv: list[str], args: dict[str, Argument]) -> list[str]:
    """Put the user's flags into a command line, each in place of the command's own of that name, the others behind."""
    for name, value in args.items():
        argv = _with_flag(argv, f"--{name}", _tokens(f"--{name}", value))
    return argv


def is_flag(token: str) -> bool:
    """Whether a word of a command line is a flag, and not a value such as -1."""
    return token.startswith("-") and not _NUMBER.fullmatch(token)


def gives(token: str, flag: str) -> bool:
    """Whether a word of a command line is that flag, with or without its value, or a key of it, as in --flag.key."""
    given, whole = spelled(token.partition("=")[0]), spelled(flag)
    return given == whole or given.startswith(f"{whole}.")


def spelled(flag: str) -> str:
    """Return a flag as it is compared: engines take --a_b as --a-b, but the keys of a flag as they are."""
    name, dot, keys = flag.partition(".")
    return f"{name.replace('_', '-')}{dot}{keys}"


def _with_flag(argv: list[str], flag: str, tokens: list[str]) -> list[str]:
    """Put tokens in the place of a flag and of the values that follow it."""
    kept: list[str] = []
    places, dropping = [], False
    for token in argv:
        found = is_flag(token) and gives(token, flag)
        if found:
            places.append(len(kept))
        if is_flag(token):
            dropping = found and "=" not in token
        if not found and not dropping:
            kept.append(token)
    place = places[0] if places else len(kept)
    return [*kept[:place], *tokens, *kept[place:]]


def _tokens(flag: str, value: Argument) -> list[str]:
    if value is True:
        return [flag]
    if value is False:
        return []
    text = ",".join(map(_text, value)) if isinstance(value, list) else _text(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _text(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
