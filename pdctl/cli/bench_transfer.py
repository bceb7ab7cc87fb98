"""`pdctl bench transfer`: measure the KV transports between two hosts or processes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdctl.bench.transfer.ends import Ends
    from pdctl.bench.transfer.messages import Event
    from pdctl.bench.transfer.report import Findings
    from pdctl.bench.transfer.sweep import Sweep
    from pdctl.cli.terminal import Terminal

LOCAL = "local"


def transfer(
    topology: Annotated[Path | None, typer.Argument(help="The topology file that names the hosts.")] = None,
    hosts: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="From which host to which: of the topology, or local (default: local local)."),
    ] = None,
    transports: Annotated[str, typer.Option(help="Which of ipc, rdma and tcp.")] = "ipc,rdma,tcp",
    block_sizes: Annotated[str, typer.Option(help="Bytes of a KV block; a K is 1024.")] = "64K,256K,1M,4M",
    in_flight: Annotated[str, typer.Option(help="Blocks in a push; two pushes are under way.")] = "1,8,64",
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="How long each combination is measured.")] = 0.3,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure each KV transport beside the rate of what it goes over.

    Between the pools of two processes, in GB/s: 10^9 bytes a second. The contents that arrive are checked.
    """
    from pdctl.bench.transfer.report import Findings, render, to_json
    from pdctl.cli.terminal import Terminal

    sweep = _sweep(transports, block_sizes, in_flight, seconds)
    ends = _ends(topology, hosts or (LOCAL, LOCAL))
    terminal, findings = Terminal(), Findings(sweep)
    try:
        _measure(findings, ends, terminal, live=not json and terminal.is_interactive)
    finally:
        if json:
            terminal.print_json(to_json(findings))
        elif findings.cells or findings.unusable or findings.failed:
            terminal.print(render(findings))
    _exit_by(findings)


def _sweep(transports: str, block_sizes: str, in_flight: str, seconds: float) -> "Sweep":
    from pdctl.bench.transfer.sweep import Sweep, parse_counts, parse_sizes, parse_transports

    option = ""
    try:
        option = "--transports"
        names = parse_transports(transports)
        option = "--block-sizes"
        sizes = parse_sizes(block_sizes)
        option = "--in-flight"
        counts = parse_counts(in_flight)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None
    return Sweep(names, sizes, counts, seconds)


def _ends(path: Path | None, names: tuple[str, str]) -> "Ends":
    from pdctl.bench.transfer.ends import Ends
    from pdctl.topology.loading import load_topology
    from pdctl.validation import nearest

    topology = load_topology(path)
    for name in names:
        if name not in (LOCAL, *topology.hosts):
            raise typer.BadParameter(f"--hosts: unknown host {name!r}, {nearest(name, [LOCAL, *topology.hosts])}")
    return Ends(topology, *names)


def _measure(findings: "Findings", ends: "Ends", terminal: "Terminal", *, live: bool) -> None:
    import asyncio
    from contextlib import nullcontext

    from rich.live import Live

    from pdctl.bench.transfer.report import render

    display = Live(console=terminal.console, transient=True, auto_refresh=False) if live else nullcontext()

    def on_event(event: "Event") -> None:
        findings.add(event)
        if isinstance(display, Live):
            display.update(render(findings), refresh=True)

    with display:
        asyncio.run(_run(findings, ends, on_event))


async def _run(findings: "Findings", ends: "Ends", on_event: "Callable[[Event], None]") -> None:
    from pdctl.bench.transfer.run import run_sweep

    await ends.look(rdma="rdma" in findings.sweep.transports)
    if ends.rdma_link is not None:
        findings.links["rdma"] = ends.rdma_link
    source, target = ends.sides()
    await run_sweep(findings.sweep, ends.environment, on_event, source=source, target=target)


def _exit_by(findings: "Findings") -> None:
    from pdctl.bench.transfer.sweep import TransferBenchError

    if findings.failed:
        raise TransferBenchError(f"failed: {_reasons(findings.failed)}")
    if not findings.cells:
        raise TransferBenchError(f"nothing could be measured: {_reasons(findings.unusable)}")


def _reasons(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
