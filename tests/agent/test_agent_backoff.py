"""The back-off of a process that ends again and again."""

from hypothesis import given
from hypothesis import strategies as st

from pdctl.agent.backoff import Backoff, Restart

SETTINGS = st.builds(
    Restart,
    backoff_s=st.just(0.0) | st.floats(0.001, 1e6),
    max_backoff_s=st.floats(0, 1e9),
    stable_s=st.floats(0.001, 1e6),
    max_restarts=st.integers(0, 2000),
)
SHORT, STABLE = 0.0, 1e9


@given(SETTINGS)
def test_it_doubles_to_the_cap_and_then_gives_up(restart: Restart) -> None:
    backoff = Backoff(restart)
    waits = [backoff.after(SHORT) for _ in range(restart.max_restarts)]
    assert backoff.after(SHORT) is None
    expected = min(restart.backoff_s, restart.max_backoff_s)
    for wait in waits:
        assert wait == expected
        expected = min(2 * expected, restart.max_backoff_s)


@given(SETTINGS, st.lists(st.booleans(), max_size=50))
def test_it_gives_up_only_after_so_many_failures_since_a_stable_life(restart: Restart, lives: list[bool]) -> None:
    backoff, in_a_row = Backoff(restart), 0
    for was_stable in lives:
        wait = backoff.after(STABLE if was_stable else SHORT)
        in_a_row = 1 if was_stable else in_a_row + 1
        assert (wait is None) == (in_a_row > restart.max_restarts)
        if wait is not None and in_a_row == 1:
            assert wait == min(restart.backoff_s, restart.max_backoff_s)


def test_which_ends_are_followed_by_another_life() -> None:
    ends = (0, 1, -9)
    covered = {policy: [Restart(policy=policy).covers(code) for code in ends] for policy in ("never", "always")}
    assert covered == {"never": [False] * 3, "always": [True] * 3}
    assert [Restart().covers(code) for code in ends] == [False, True, True]
