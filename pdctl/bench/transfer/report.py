"""What has been measured, as a table and as JSON."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pdctl.bench.transfer.messages import Cell, Event, Failed, Link, Links, Unusable
from pdctl.bench.transfer.sweep import Sweep, show_size


@dataclass(slots=True)
class Findings:
    """What is known so far."""

    sweep: Sweep
    links: dict[str, Link] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take in what the source says."""
        match event:
            case Links():
                self.links |= event.links
            case Cell():
                self.cells.append(event)
            case Unusable():
                self.unusable[event.transport] = event.reason
            case Failed():
                self.failed[event.transport] = event.reason


def to_json(findings: Findings) -> dict[str, Any]:
    """Return everything as plain data."""
    cells = [{**msgspec.to_builtins(cell), "gigabytes_s": cell.gigabytes_s} for cell in findings.cells]
    for cell in cells:
        del cell["event"]
    links = {name: msgspec.to_builtins(link) for name, link in findings.links.items()}
    return {
        "seconds": findings.sweep.seconds,
        "links": links,
        "cells": cells,
        "unusable": findings.unusable,
        "failed": findings.failed,
    }


def render(findings: Findings) -> RenderableType:
    """Return a row for each transport and block size, in GB/s, beside the rate of what it goes over.

    Below, a row for each transport that cannot be used, or has failed, and why.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for header in ("transport", "block"):
        table.add_column(header, no_wrap=True)
    for count in findings.sweep.in_flight:
        table.add_column(f"x {count}", justify="right")
    table.add_column("link GB/s", justify="right")
    table.add_column("of link", justify="right")
    table.add_column("link")
    for transport in findings.sweep.transports:
        _add_transport(table, findings, transport)
    reasons = [
        *(Text(f"{transport:<11}not usable: {reason}") for transport, reason in findings.unusable.items()),
        *(Text(f"{transport:<11}failed: {reason}") for transport, reason in findings.failed.items()),
    ]
    return Group(*([table] if findings.cells else []), *reasons)


def _add_transport(table: Table, findings: Findings, transport: str) -> None:
    link = findings.links.get(transport) or Link("")
    for size in findings.sweep.block_sizes:
        cells = [cell for cell in findings.cells if (cell.transport, cell.block_bytes) == (transport, size)]
        if not cells:
            continue
        measured = {cell.in_flight: cell.gigabytes_s for cell in cells}
        rates = [measured.get(count) for count in findings.sweep.in_flight]
        share = f"{max(measured.values()) / link.gigabytes_s:.0%}" if link.gigabytes_s else "-"
        figures = (*map(_rate, rates), _rate(link.gigabytes_s), share)
        table.add_row(transport, show_size(size), *figures, Text(link.name))


def _rate(gigabytes_s: float | None) -> str:
    return "-" if gigabytes_s is None else f"{gigabytes_s:.2f}"
