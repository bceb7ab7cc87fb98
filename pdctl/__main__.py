"""`python -m pdctl` is `pdctl`."""

from pdctl.cli.main import main

main()
