"""All checks, in the order in which their findings are shown."""

from collections.abc import Callable, Iterator

from pdctl.doctor.checks.addresses import check_addresses, check_mtu
from pdctl.doctor.checks.connections import check_connections
from pdctl.doctor.checks.disk import check_disk
from pdctl.doctor.checks.gpus import check_drivers, check_gpus
from pdctl.doctor.checks.limits import check_login, check_open_files, check_shm
from pdctl.doctor.checks.model import check_model
from pdctl.doctor.checks.nics import check_fabric, check_memlock, check_nics
from pdctl.doctor.checks.placement import check_placement
from pdctl.doctor.checks.ports import check_ports
from pdctl.doctor.checks.reaching import check_clocks, check_reached
from pdctl.doctor.checks.starting import check_starting
from pdctl.doctor.checks.versions import check_engine, check_python
from pdctl.doctor.facts import Facts
from pdctl.doctor.finding import Finding

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(check_reached, check_clocks, check_python, check_engine, check_starting),
    *(check_gpus, check_drivers, check_nics, check_fabric, check_memlock),
    *(check_shm, check_open_files, check_login, check_disk, check_model),
    *(check_addresses, check_mtu, check_ports, check_connections, check_placement),
)


def judge(facts: Facts) -> list[Finding]:
    """Everything that the checks find. Pure: equal facts give equal findings."""
    return [finding for check in CHECKS for finding in check(facts)]
