"""`pdctl bench`: measure a running deployment, or any OpenAI-compatible server, under load."""

import asyncio
import json
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from pdctl.bench.client import BenchError, Endpoint, base_url, open_session, served_model
from pdctl.bench.dataset import SyntheticDataset, load_prompts
from pdctl.bench.progress import show_progress
from pdctl.bench.records import Result, Tally, Workload
from pdctl.bench.report import render_report, to_json, warnings
from pdctl.bench.runner import run_benchmark
from pdctl.cli.bench_transfer import transfer
from pdctl.cli.terminal import Terminal
from pdctl.deployment.store import Store
from pdctl.errors import ExitCode, NotFoundError, PdctlError

DEFAULT_DURATION_S = 10.0
LOOKUP_TIMEOUT_S = 30.0


class OptionError(PdctlError):
    """The options do not fit together."""

    exit_code = ExitCode.USAGE


bench = typer.Typer(add_completion=False, rich_markup_mode=None)
bench.command("transfer")(transfer)


@bench.callback(invoke_without_command=True)
def load(
    ctx: typer.Context,
    qps: Annotated[float | None, typer.Option(help="Requests a second, in an open loop; inf: all at once.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Without --qps: users of a closed loop. With it: a cap.")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0.001, help="Seconds to send for (default: 10).")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests to send, instead of a duration.")] = None,
    name: Annotated[str | None, typer.Option(help="The deployment (default: the one that runs).")] = None,
    url: Annotated[str | None, typer.Option(help="A server's URL, instead of a deployment.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask for (default: the first it serves).")] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="Which API to call.")] = "chat",
    input_tokens: Annotated[int, typer.Option(min=1, help="Words, about a token each, in a prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens to ask for.")] = 32,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line, or .jsonl.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Generate --output-tokens even if the model would end.")] = True,
    continuous_usage: Annotated[
        bool, typer.Option("--continuous-usage", help="Ask for token counts in each chunk: exact ITL.")
    ] = False,
    burstiness: Annotated[float, typer.Option(help="1: Poisson; less: bursts; more: evener; inf: constant.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of prompts and arrivals (default: random).")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the measurement.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 600.0,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Exit with 10 if a larger share of requests failed.")
    ] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    save_detailed: Annotated[
        bool, typer.Option("--save-detailed", help="Add every request's figures and text to the file.")
    ] = False,
) -> None:
    """Measure a running deployment under load: latencies, throughput, errors."""
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx)
        return
    terminal = Terminal()
    if qps is None and concurrency is None:
        raise OptionError("say how much load: --qps N (open loop) or --concurrency N (closed loop)")
    if name is not None and url is not None:
        raise OptionError("--name and --url both say what to measure: give one of them")
    if save_detailed and json_file is None:
        raise OptionError("--save-detailed adds to the file of --json: give that too")
    if json_file is not None:
        with _writing(json_file):
            json_file.open("a").close()  # fails now rather than after the benchmark
    seed = random.randrange(2**32) if seed is None else seed
    dataset = load_prompts(prompts, output_tokens) if prompts else SyntheticDataset(input_tokens, output_tokens, seed)
    try:
        workload = Workload(
            dataset=dataset,
            rate=qps,
            concurrency=concurrency,
            requests=requests,
            duration_s=DEFAULT_DURATION_S if duration is None and requests is None else duration,
            burstiness=burstiness,
            seed=seed,
            warmup=warmup,
            endpoint=endpoint,
            ignore_eos=ignore_eos,
            continuous_usage=continuous_usage,
            timeout_s=timeout,
            keep_texts=save_detailed,
        )
    except ValueError as error:
        raise OptionError(str(error)) from error
    result = uvloop.run(_measure(workload, url or _deployment_url(name), model, terminal))
    try:
        if json_file is not None:
            _write_json(json_file, to_json(result, detailed=save_detailed))
    finally:
        _show(result, terminal)
    _exit_by(result, max_error_rate)


def _refuse_options(ctx: typer.Context) -> None:
    """A command below `bench` has options of its own, behind its name."""
    sources = {param.opts[0]: ctx.get_parameter_source(param.name) for param in ctx.command.params if param.name}
    given = [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise OptionError(f"{given[0]} does not go with `bench {ctx.invoked_subcommand}`: give options behind it")


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    with _writing(path):
        path.write_text(json.dumps(figures, indent=2) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"cannot write the result to {path}: {error.strerror}; choose another file") from error


def _deployment_url(name: str | None) -> str:
    """Return the endpoint of a deployment that is ready."""
    folder = Store().choose(name)
    state = folder.read_state()
    if state is None or state.phase not in ("verified", "changing") or state.endpoint is None:
        phase = state.phase if state else "gone"
        raise NotFoundError(f"deployment {folder.name!r} does not serve, it is {phase}: see `pdctl status`")
    return state.endpoint


async def _measure(workload: Workload, url: str, model: str | None, terminal: Terminal) -> Result:
    if model is None:
        async with open_session(LOOKUP_TIMEOUT_S) as session:
            model = await served_model(session, base_url(url))
    stop, tally = asyncio.Event(), Tally()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    live = terminal.is_interactive
    progress = asyncio.create_task(show_progress(tally, workload.planned_requests, terminal.console, live=live))
    try:
        return await run_benchmark(workload, url, model, stop=stop, tally=tally)
    finally:
        progress.cancel()
        await asyncio.wait({progress})
        if not progress.cancelled() and (error := progress.exception()) is not None:
            terminal.warning(f"the progress could not be shown: {error}")


def _show(result: Result, terminal: Terminal) -> None:
    terminal.print(render_report(result))
    for warning in warnings(result):
        terminal.warning(warning)


def _exit_by(result: Result, max_error_rate: float) -> None:
    """Turn what went wrong into an exit code."""
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if result.error_rate > max_error_rate:
        share = f"{len(result.failed)} of {len(result.records)} requests failed"
        raise BenchError(f"{share}: more than --max-error-rate {max_error_rate:g}")
