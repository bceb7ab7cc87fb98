"""`python -m pdctl.router`."""

import asyncio
import logging
import resource
import sys
from collections.abc import Sequence

import uvloop

from pdctl.errors import PdctlError
from pdctl.router.arguments import parse
from pdctl.router.supervisor import Supervisor
from pdctl.router.worker import Place, serve_alone, serve_as_worker

log = logging.getLogger("pdctl.router")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until it is told to stop; its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings, debug = parse(argv)
        if debug:
            logging.getLogger("pdctl").setLevel(logging.DEBUG)
        _allow_many_connections()
        place = Place.inherited()
        if place is not None:
            served = serve_as_worker(settings, place)
        elif settings.workers > 1:
            served = Supervisor(settings, sys.argv[1:] if argv is None else argv).run()
        else:
            served = serve_alone(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(served)
    except PdctlError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def _allow_many_connections() -> None:
    """Every request takes up to three sockets; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
