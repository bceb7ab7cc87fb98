"""A process's own figures, from the Prometheus text on its metrics port."""

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

import httpx

from pdctl.deployment.models import Load

SCRAPE_TIMEOUT_S = 1.0
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+([-+]?(?:Inf|[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?))(?:\s+-?[0-9]+)?\s*$"
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_SHARES = ("kv_usage",)  # of something that each rank has: their mean, not their sum
# Names of which a label's values are wanted.
_LISTS = {"transports": "transport", "draining": "instance", "fallbacks": "reason"}


class Sample(NamedTuple):
    """One line of a Prometheus text."""

    name: str
    labels: dict[str, str]
    value: float


async def scrape(client: httpx.AsyncClient, url: str, metrics: Mapping[str, str]) -> Load:
    """The figures named by ``metrics`` (common name -> selector); an empty Load when the process does not answer."""
    try:
        async with asyncio.timeout(SCRAPE_TIMEOUT_S):
            answer = await client.get(url)
    except (httpx.HTTPError, TimeoutError):  # it starts, is busy or has died: its state says which
        return Load()
    samples = parse_samples(answer.text) if answer.status_code == httpx.codes.OK else []
    return Load.model_validate({name: _figure(name, samples, selector) for name, selector in metrics.items()})


def parse_samples(text: str) -> list[Sample]:
    """The samples of a Prometheus text; what is no sample is passed over."""
    matches = (_SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return [Sample(match[1], _labels(match[2] or ""), float(match[3])) for match in matches if match]


def select(samples: list[Sample], selector: str) -> float | None:
    """The sum over the samples of that name with (at least) those labels: ``name{label="value"}``; None without any."""
    values = _values(samples, selector)
    return sum(values) if values else None


def values_of(samples: list[Sample], selector: str, label: str) -> list[str]:
    """The values of a label in the samples of that name that are not 0, in alphabetical order."""
    name = selector.partition("{")[0]
    return sorted(
        {sample.labels[label] for sample in samples if sample.name == name and sample.value and label in sample.labels}
    )


def _figure(name: str, samples: list[Sample], selector: str) -> float | list[str] | None:
    if label := _LISTS.get(name):
        return values_of(samples, selector, label)
    if name in _SHARES and (values := _values(samples, selector)):
        return sum(values) / len(values)
    return select(samples, selector)


def _values(samples: list[Sample], selector: str) -> list[float]:
    name, _, labels = selector.partition("{")
    wanted = _labels(labels).items()
    return [sample.value for sample in samples if sample.name == name and wanted <= sample.labels.items()]


def _labels(text: str) -> dict[str, str]:
    return dict(_LABEL.findall(text))
