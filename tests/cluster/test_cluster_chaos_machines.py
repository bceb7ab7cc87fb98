"""Hosts whose disk is full, or whose clock is wrong: they serve on, and end as others do."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster_chaos import Deployed, Status, asked_all_the_while, deployed, kill, look_until, process_of
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import UP_S
from tests.cluster.namespaces import until

pytestmark = pytest.mark.chaos

HOSTS = {"stays": Spec(), "full": Spec(), "late": Spec(clock_s=-5000), "early": Spec(clock_s=5000)}
TALKS = {"setup": "while sleep 0.5; do printf '%08000d\\n' 0; done &"}  # beside the engine, as part of its processes


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("chaos"), HOSTS, full=TALKS, late=TALKS, early=TALKS) as deployment:
        yield deployment


def test_a_disk_that_fills_up_keeps_nobody_from_serving(at: Deployed):
    """It is full until the end, and keeps nobody from that either."""
    with asked_all_the_while(at.url):
        at.cluster["full"].fill_disk()
        status = look_until(at.cli, lambda status: "No space left" in str(of(status, "full")["warning"]), "a warning")
        assert of(status, "full")["state"] == "ready"
        kill(process_of(at.cluster, status, str(of(status, "full")["name"])))
        look_until(at.cli, lambda status: was_restarted(status, "full"), "a restart")


@pytest.mark.parametrize(("host", "then_s"), [("late", 90_000), ("early", -90_000)])
def test_a_clock_that_is_wrong_and_jumps_changes_nothing(at: Deployed, host: str, then_s: float):
    before = of(at.cli.status(), host)
    name = str(before["name"])
    until(lambda: f"{name} | 0000" in at.cli("logs", name, "--tail", "1").stdout, "a line")
    with asked_all_the_while(at.url):
        at.cluster[host].shift_clock(then_s)
        kill(process_of(at.cluster, at.cli.status(), name))
        after = look_until(at.cli, lambda status: was_restarted(status, host), "a restart")
    assert of(after, host)["uptime_s"] < UP_S
    assert f"{name} was started again (1): it was killed by SIGKILL" in at.cli("logs", name).stdout


def of(status: Status, host: str) -> dict[str, object]:
    """The engine of a host."""
    (found,) = [one for one in status["processes"] if one["host"] == host and one["role"] == "mixed"]
    return found


def was_restarted(status: Status, host: str) -> bool:
    return (of(status, host)["restarts"], of(status, host)["state"]) == (1, "ready")
