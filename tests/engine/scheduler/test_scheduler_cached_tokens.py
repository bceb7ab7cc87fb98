"""A request's tokens tell how much of its prompt the prefix cache held."""

from tests.engine.scheduler.rig import Rig


def cached(rig: Rig, name: str) -> set[int]:
    return {token.cached_tokens for token in rig.tokens if token.request_id == name and token.index == 0}


def test_a_prompt_seen_before_is_told_as_cached() -> None:
    rig = Rig()
    rig.submit("a", [1] * 10, max_tokens=2)
    rig.run()
    rig.submit("b", [1] * 10, max_tokens=2, n=2)
    rig.run()
    assert cached(rig, "a") == {0}
    assert cached(rig, "b") == {8}


def test_a_reservation_tells_what_needed_no_transfer() -> None:
    rig = Rig()
    first = rig.submit("a", [1] * 10, max_tokens=2)
    rig.run()
    again = type(first)("b", first.prompt, first.sampling)
    rig.decode(again, rig.reserve("b", again.prompt))
    rig.run()
    assert cached(rig, "b") == {8}
