"""`python -m pdctl.router`."""

import asyncio
import logging
import resource
import sys
from collections.abc import Sequence

import uvloop

from pdctl.errors import PdctlError
from pdctl.router.access.tokens import TOKEN_FILE
from pdctl.router.arguments import parse
from pdctl.router.settings import Settings
from pdctl.router.workers.supervisor import Supervisor
from pdctl.router.workers.worker import Place, serve_alone, serve_as_worker

log = logging.getLogger("pdctl.router")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until it is told to stop; its exit code."""
    try:
        place = Place.inherited()
        _set_up_logging("" if place is None else f"worker {place.worker}: ")
        _allow_many_connections()
        if place is not None:
            served = serve_as_worker(place)
        else:
            argv = sys.argv[1:] if argv is None else argv
            settings, debug = parse(argv)
            served = _serve(settings, argv, debug=debug)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(served)
    except PdctlError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


async def _serve(settings: Settings, argv: Sequence[str], *, debug: bool) -> None:
    if debug:
        logging.getLogger("pdctl").setLevel(logging.DEBUG)
    if settings.api_keys is not None and settings.token is None:
        log.warning("%s is not set: API keys are checked, but anybody may register engines", TOKEN_FILE)
    if settings.workers > 1:
        await Supervisor(settings, argv, debug=debug).run()
    else:
        await serve_alone(settings)


def _set_up_logging(prefix: str) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s {prefix}%(message)s", stream=sys.stderr)


def _allow_many_connections() -> None:
    """Every request takes up to three sockets; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
