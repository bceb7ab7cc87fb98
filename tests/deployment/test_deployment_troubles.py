"""What log lines mean."""

import pytest

from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.troubles import advice
from pdctl.errors import ProcessDiedError
from pdctl.profiles import Trouble
from tests.deployment.deployment_harness import make_plan, started

TROUBLES = [
    Trouble(pattern=r"address already in use", advice="another process has the port"),
    Trouble(pattern=r"out of memory", advice="give it less"),
]


def test_each_advice_is_given_once_with_its_line():
    lines = ["p | OSError: address already in use", "p | again: address already in use", "p | fine"]
    assert advice(lines, TROUBLES) == (
        "advice: another process has the port\n  for: p | OSError: address already in use"
    )
    assert advice(["p | fine"], TROUBLES) == ""


async def test_a_start_that_fails_is_told_with_advice(folder: DeploymentFolder):
    known = Trouble(pattern="something went wrong", advice="do not tell it")
    plan = make_plan(options={"prefill-0": ["--exit", "3"]}).model_copy(update={"troubles": (known,)})
    with pytest.raises(ProcessDiedError) as caught:
        async with started(folder, plan):
            pass
    assert "advice: do not tell it\n  for: prefill-0 | " in caught.value.detail
