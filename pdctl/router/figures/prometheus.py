"""Figures that are cheap to count, can be summed over processes, and are read as Prometheus text."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Number = int | float
Part = str | bytes | int  # of a key: one label's value
Key = Part | tuple[Part, ...]  # a sample's labels: a lone value stands for itself, no labels are ()
Labels = tuple[str, ...]
Samples = dict[Labels, list[Number]]  # of a counter or gauge [value], of a histogram [*counts, sum]
Snapshot = dict[str, list[tuple[Labels, list[Number]]]]  # by a family's name

_decoder = msgspec.msgpack.Decoder(Snapshot)


class Family(dict[Key, Number]):
    """Counters or gauges of one name, by their labels: `family[route, status] += 1`."""

    __slots__ = ("help", "kind", "labels", "name", "own")

    def __init__(self, name: str, kind: str, labels: Sequence[str], text: str, *, own: bool = False) -> None:
        super().__init__({} if labels else {(): 0})
        self.name = name
        self.kind = kind
        self.labels = labels
        self.help = text
        self.own = own  # what each process says for all: not summed

    def __missing__(self, key: Key) -> int:
        return 0

    @property
    def value(self) -> Number:
        """The only sample of a family without labels: `family.value += 1`."""
        return self[()]

    @value.setter
    def value(self, value: Number) -> None:
        self[()] = value

    def samples(self) -> Samples:
        """What has been counted."""
        return {_labels(key): [value] for key, value in self.items()}

    def lines(self, samples: Samples) -> Iterable[str]:
        """The text of samples."""
        for labels, [value] in samples.items():
            yield f"{self.name}{_braces(zip(self.labels, labels, strict=True))} {value}\n"


class Histogram:
    """How often which values were observed. A value that equals a bound is below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histograms(dict[Key, Histogram]):
    """Histograms of one name, by their labels: `histograms[model].observe(0.1)`. Without bounds: sums and counts."""

    __slots__ = ("bounds", "help", "kind", "labels", "name", "own")

    def __init__(self, name: str, labels: Sequence[str], bounds: Sequence[float], text: str) -> None:
        super().__init__({} if labels else {(): Histogram(bounds)})
        self.name = name
        self.kind = "histogram" if bounds else "summary"
        self.labels = labels
        self.bounds = bounds
        self.help = text
        self.own = False

    def __missing__(self, key: Key) -> Histogram:
        self[key] = histogram = Histogram(self.bounds)
        return histogram

    def samples(self) -> Samples:
        """What has been observed."""
        return {_labels(key): [*histogram.counts, histogram.total] for key, histogram in self.items()}

    def lines(self, samples: Samples) -> Iterable[str]:
        """The text of samples."""
        for labels, [*counts, total] in samples.items():
            pairs, count = tuple(zip(self.labels, labels, strict=True)), sum(counts)
            below: Number = 0
            for bound, here in zip(self.bounds, counts, strict=False):
                below += here
                yield f"{self.name}_bucket{_braces((*pairs, ('le', f'{bound:g}')))} {below}\n"
            if self.bounds:
                yield f"{self.name}_bucket{_braces((*pairs, ('le', '+Inf')))} {count}\n"
            yield f"{self.name}_sum{_braces(pairs)} {total}\n{self.name}_count{_braces(pairs)} {count}\n"


class AnyFamily(Protocol):
    """What a page is made of."""

    name: str
    kind: str
    help: str
    own: bool

    def samples(self) -> Samples:
        """What has been counted."""

    def lines(self, samples: Samples) -> Iterable[str]:
        """The text of samples."""


class Families:
    """All families of a process, each declared once."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._families: list[AnyFamily] = []

    def counter(self, name: str, labels: Sequence[str], text: str) -> Family:
        """Declare what only grows."""
        return self._add(Family(self._prefix + name, "counter", labels, text))

    def gauge(self, name: str, labels: Sequence[str], text: str, *, own: bool = False) -> Family:
        """Declare what goes up and down; `own`: what each process says for all, so that it is not summed."""
        return self._add(Family(self._prefix + name, "gauge", labels, text, own=own))

    def histograms(self, name: str, labels: Sequence[str], bounds: Sequence[float], text: str) -> Histograms:
        """Declare a distribution, or without bounds just its sum and count."""
        family = Histograms(self._prefix + name, labels, bounds, text)
        self._families.append(family)
        return family

    def histogram(self, name: str, bounds: Sequence[float], text: str) -> Histogram:
        """Declare a distribution without labels."""
        return self.histograms(name, (), bounds, text)[()]

    def snapshot(self) -> bytes:
        """Everything that other processes add to theirs."""
        return msgspec.msgpack.encode({f.name: list(f.samples().items()) for f in self._families if not f.own})

    def render(self, snapshots: Iterable[bytes], past: Iterable[bytes] = ()) -> bytes:
        """This process's figures and those of the others' snapshots as one page.

        Of `past` snapshots, of processes that do not answer any more, only what adds up over time still counts.
        """
        others = [_decoder.decode(snapshot) for snapshot in snapshots]
        gone = [_decoder.decode(snapshot) for snapshot in past]
        lines: list[str] = []
        for family in self._families:
            samples = family.samples()
            for other in others if family.kind == "gauge" else (*others, *gone):
                _add(samples, other.get(family.name, ()))
            lines.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n")
            lines.extend(family.lines(samples))
        return "".join(lines).encode()

    def _add(self, family: Family) -> Family:
        self._families.append(family)
        return family


def merged(one: bytes, other: bytes) -> bytes:
    """Two snapshots as one: the sum of both."""
    families = {name: dict(samples) for name, samples in _decoder.decode(one).items()}
    for name, samples in _decoder.decode(other).items():
        _add(families.setdefault(name, {}), samples)
    return msgspec.msgpack.encode({name: list(samples.items()) for name, samples in families.items()})


def _add(samples: Samples, others: Iterable[tuple[Labels, list[Number]]]) -> None:
    for labels, values in others:
        mine = samples.get(labels)
        samples[labels] = values if mine is None else [a + b for a, b in zip(mine, values, strict=True)]


def _labels(key: Key) -> Labels:
    return tuple(map(_text, key)) if isinstance(key, tuple) else (_text(key),)


def _text(part: Part) -> str:
    return part.decode("latin-1") if isinstance(part, bytes) else str(part)


def _braces(pairs: Iterable[tuple[str, str]]) -> str:
    inner = ",".join(f'{name}="{_escape(text)}"' for name, text in pairs)
    return f"{{{inner}}}" if inner else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
