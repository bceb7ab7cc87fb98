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
    sweep.add_argument("--for-good", action="store_true", help="let no agent of the run begin afterwards")
    remains = _command(commands, "remains", _remains, "what a run has left beside processes")
    remains.add_argument("--ports", type=int, nargs="*", default=[], help="that it had")
    remains.add_argument("--since", type=float, required=True, help="when it was started, seconds since the epoch")
    logs = _command(commands, "logs", _logs, "the last lines of each log, one JSON list [process, time, text] a line")
    logs.add_argument("--tail", type=int, default=100)
    logs.add_argument("--run-id", help="the run whose lines are wanted (default: any)")
    logs.add_argument("names", nargs="*")
    probe = _command(commands, "probe", _probe, "what this host has")
    probe.add_argument("--ports", type=int, nargs="*", default=[], help="ports to be looked at")
    probe.add_argument("--python", help="the interpreter that has the engine")
    probe.add_argument("--packages", nargs="*", default=[], help="whose version is asked for: the first that it has")
    probe.add_argument("--environment", default="", help="whose interpreter has the engine, if it is complete here")
    _command(commands, "receive", _receive, "write stdin to the file NAME of the folder").add_argument("name")
    install = _command(commands, "install", _install, "make an environment for the builtin engine in the folder")
    install.add_argument("--wheel", required=True)
    install.add_argument("--python", help="the interpreter to make it with")
    install.add_argument("--wheelhouse", type=_folder, help="a folder of wheels: nothing is asked of an index")
    install.add_argument("--more", nargs="*", default=[], help="requirements to be installed without their own")
    examine = _command(commands, "examine", _examine, "what can keep a deployment from running on this host")
    examine.add_argument("--address", help="at which other hosts reach it")
    examine.add_argument("--python", help="the interpreter that has the engine")
    examine.add_argument("--environment", default="", help="whose interpreter has the engine, if it is complete here")
    examine.add_argument("--workdirs", nargs="*", default=[], help="the folders in which processes are started")
    examine.add_argument("--model", help="a path or a hub id")
    examine.add_argument("--hub", help="the folder in which models of the hub are kept")
    examine.add_argument("--read-model", action="store_true", help="tell of its files by their content too")
    _command(commands, "meet", _meet, "reach other hosts and be reached, as the JSON on stdin says")
    return parser


def _command(commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--dir", type=_folder, required=True, help="the agent's folder")
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


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

    _print(sweep(options.dir, options.run_id, options.wait, force=options.force, for_good=options.for_good))
    return 0


def _remains(options: argparse.Namespace) -> int:
    from pdctl.agent.probe import port_holders
    from pdctl.agent.shared_memory import left_in_shared_memory

    _print({"ports": port_holders(options.ports), "shared_memory": left_in_shared_memory(options.since)})
    return 0


def _logs(options: argparse.Namespace) -> int:
    from pdctl.agent.logs import collect_logs
    from pdctl.agent.run_record import began

    since = began(options.dir, options.run_id) if options.run_id else 0.0
    if since is not None:
        for line in collect_logs(options.dir, options.names or None, options.tail, since):
            _print(line)
    return 0


def _probe(options: argparse.Namespace) -> int:
    from pdctl.agent.engine_version import engine_version
    from pdctl.agent.environment import environment_python
    from pdctl.agent.probe import probe

    prepared = environment_python(options.environment) if options.environment else None
    python = options.python or prepared or sys.executable
    found = {**probe(options.dir, options.ports), **engine_version(python, options.packages)}
    _print({**found, "prepared_python": prepared})
    return 0


def _receive(options: argparse.Namespace) -> int:
    from pdctl.agent.environment import receive

    receive(options.dir / options.name)
    return 0


def _install(options: argparse.Namespace) -> int:
    from pdctl.agent.environment import install

    install(options.dir, options.wheel, options.python, options.wheelhouse, options.more)
    return 0


def _examine(options: argparse.Namespace) -> int:
    from pdctl.agent.environment import environment_python
    from pdctl.agent.examine import examine

    prepared = environment_python(options.environment) if options.environment else None
    facts = examine(
        options.dir,
        address=options.address,
        python=options.python or prepared or sys.executable,
        workdirs=options.workdirs,
        model=options.model,
        hub=options.hub,
        read_model=options.read_model,
    )
    _print(facts)
    return 0


def _meet(options: argparse.Namespace) -> int:
    from pdctl.agent.meet import meet

    _print(meet(json.load(sys.stdin)))
    return 0


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    sys.exit(main())
