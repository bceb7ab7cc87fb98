"""``python -m pdctl.agent``: what a launcher runs on a host. Results are JSON on stdout, an error a line on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional

from pdctl.agent.paths import AgentError

_Parser = argparse.ArgumentParser
if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[_Parser]


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (AgentError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> _Parser:
    parser = argparse.ArgumentParser(prog="python -m pdctl.agent", description=__doc__)
    commands = parser.add_subparsers(required=True)
    serve = _command(commands, "serve", _serve, "own the processes of a run on this host")
    serve.add_argument("--run-id", required=True)
    serve.add_argument("--detach", action="store_true", help="return when it listens, and go on in the background")
    _command(commands, "connect", _connect, "join stdin and stdout to the agent's socket")
    sweep = _command(commands, "sweep", _sweep, "kill whatever lives of a run whose agent is dead")
    sweep.add_argument("--run-id", required=True)
    sweep.add_argument("--wait", type=float, default=0.0, help="seconds to let guardian and agent end by themselves")
    sweep.add_argument("--force", action="store_true", help="kill them too when they have not")
    logs = _command(commands, "logs", _logs, "the last lines of each log, one JSON list [process, time, text] a line")
    logs.add_argument("--tail", type=int, default=100)
    logs.add_argument("names", nargs="*")
    probe = _command(commands, "probe", _probe, "what this host has")
    probe.add_argument("--ports", type=int, nargs="*", default=[], help="ports to be looked at")
    probe.add_argument("--python", default=sys.executable, help="the interpreter that has the engine")
    probe.add_argument("--packages", nargs="*", default=[], help="whose version is asked for: the first that it has")
    return parser


def _command(commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--dir", type=Path, required=True, help="the agent's folder")
    return parser


def _serve(options: argparse.Namespace) -> int:
    from pdctl.agent.guardian import serve, serve_detached

    if options.detach:
        serve_detached(options.dir, options.run_id)
        return 0
    return serve(options.dir, options.run_id, lambda text: None)


def _connect(options: argparse.Namespace) -> int:
    from pdctl.agent.bridge import bridge

    bridge(options.dir)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from pdctl.agent.sweep import sweep

    _print(sweep(options.dir, options.run_id, options.wait, force=options.force))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from pdctl.agent.logs import collect_logs

    for line in collect_logs(options.dir, options.names or None, options.tail):
        _print(line)
    return 0


def _probe(options: argparse.Namespace) -> int:
    from pdctl.agent.engine_version import engine_version
    from pdctl.agent.probe import probe

    _print({**probe(options.dir, options.ports), **engine_version(options.python, options.packages)})
    return 0


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    sys.exit(main())
