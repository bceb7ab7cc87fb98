"""Reads a YAML file so that whatever is wrong in it can be said with its line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from pdctl.errors import TopologyError

Key = tuple[str | int, ...]  # the way to a value: ("prefill", 0, "replicas")

MAX_VALUES = 10_000  # a few lines of aliases of aliases can make billions


@dataclass(frozen=True)
class Document:
    """A file's plain data, and the line of every key in it."""

    path: Path
    data: object
    lines: dict[Key, int]

    def line_of(self, key: Key) -> int:
        """Return the line of the key, or of the nearest one around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def read_yaml(path: Path, *, substitute: Callable[[str], str] | None = None) -> Document:
    """Read one document of plain values; `substitute` rewrites each scalar with a "$", or raises ValueError."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        builder = _Builder(path, loader, substitute)
        root = loader.get_single_node()
        if root is None:
            raise TopologyError(f"{path}: is empty")
        return Document(path, builder.build(root, ()), builder.lines)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except RecursionError:
        raise TopologyError(f"{path}: is nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise TopologyError(f"{path}: {error.reason} (at character {error.position})") from None


def show_key(key: Key) -> str:
    """Write a key as users read it: prefill[0].replicas."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except FileNotFoundError:
        raise TopologyError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise TopologyError(f"{path}: is a directory, not a YAML file") from None
    except OSError as error:
        raise TopologyError(f"{path}: cannot be read: {error.strerror}") from None


def _syntax_error(path: Path, error: yaml.MarkedYAMLError) -> TopologyError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    hint = ""
    if mark and mark.buffer and "${" in mark.buffer.splitlines()[mark.line]:
        hint = "; inside { } and [ ] put ${...} in quotes"
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return TopologyError(f"{path}:{line}: not valid YAML: {said}{hint}")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute, replaced whole
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Builder:
    """Turns YAML nodes into plain data and notes the line of each key."""

    def __init__(self, path: Path, loader: _Loader, substitute: Callable[[str], str] | None) -> None:
        self.lines: dict[Key, int] = {}
        self._path = path
        self._loader = loader
        self._substitute = substitute
        self._open: list[yaml.Node] = []  # the nodes that are being built: one that holds itself never ends

    def build(self, node: yaml.Node, key: Key) -> object:
        self.lines.setdefault(key, node.start_mark.line + 1)
        if any(node is outer for outer in self._open):
            raise self._error(node, key, "holds itself")
        if len(self.lines) > MAX_VALUES:
            raise self._error(node, key, f"the file has more than {MAX_VALUES} values")
        self._open.append(node)
        value = self._value(node, key)
        self._open.pop()
        return value

    def _value(self, node: yaml.Node, key: Key) -> object:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, object]:
        mapping: dict[str, object] = {}
        for name_node, value_node in node.value:
            name = self._name(name_node, key)
            if name in mapping:
                first = self.lines[(*key, name)]
                raise self._error(name_node, (*key, name), f"is given twice, first on line {first}")
            self.lines[(*key, name)] = name_node.start_mark.line + 1
            mapping[name] = self.build(value_node, (*key, name))
        return mapping

    def _name(self, node: yaml.Node, key: Key) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        if node.tag == "tag:yaml.org,2002:merge":
            raise self._error(node, key, "merge keys (<<) are not supported: write the keys out")
        shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "of several parts"
        raise self._error(node, key, f"a key must be text, and {shown} is not: put it in quotes")

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> object:
        text, tag = node.value, node.tag
        try:
            if self._substitute and "$" in text:
                text = self._substitute(text)
                tag = self._loader.resolve(yaml.ScalarNode, text, (True, False)) if node.style is None else tag  # type: ignore[no-untyped-call]
            return self._loader.construct_object(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark))
        except ValueError as error:
            raise self._error(node, key, str(error)) from None

    def _error(self, node: yaml.Node, key: Key, message: str) -> TopologyError:
        return TopologyError(f"{self._path}:{node.start_mark.line + 1}: {f'{show_key(key)}: ' if key else ''}{message}")
