"""`python -m engine`: one engine process."""

import sys

from engine.args import parse_args


def main() -> int:
    """Serve until told to stop; return the exit status."""
    args = parse_args()
    from engine.server.process import run  # a wrong command line is refused without loading the server

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
